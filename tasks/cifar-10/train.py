import numpy as np
import pandas as pd
from scipy import fft, ndimage
from sklearn import decomposition, ensemble, linear_model, naive_bayes
from sklearn import neighbors, neural_network, pipeline, preprocessing, svm

train = pd.read_csv("data/train.csv", index_col="id")
test = pd.read_csv("data/test.csv", index_col="id")
y = train["label"]


def describe(images):
    x = images.astype(np.float32) / 255
    x = x - 0.5
    x = x[:, ::8, ::8]
    return x.reshape(len(x), -1)


x_train = pd.DataFrame(describe(np.load("data/train_images.npy")), train.index)
x_test = pd.DataFrame(describe(np.load("data/test_images.npy")), test.index)

scale = preprocessing.FunctionTransformer()
model = linear_model.LogisticRegression(C=0.1)
pipe = pipeline.make_pipeline(scale, model)

rest = x_train.sample(frac=0.2, random_state=0)
part = x_train.drop(rest.index).sample(n=300, random_state=0)
pipe.fit(part, y[part.index])
print("valid:", pipe.score(rest, y[rest.index]))

pred = pipe.predict_proba(x_test)
pd.DataFrame(pred, test.index).to_csv("submission.csv")
