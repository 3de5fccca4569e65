import numpy as np
import pandas as pd
from PIL import Image
from sklearn import decomposition, ensemble, linear_model, metrics, naive_bayes
from sklearn import neighbors, neural_network, pipeline, preprocessing, svm

train = pd.read_csv("data/train.csv", index_col="image_id")
test = pd.read_csv("data/test.csv", index_col="image_id")
kinds = ["healthy", "multiple_diseases", "rust", "scab"]
y = train[kinds].to_numpy().argmax(axis=1)
y = pd.Series(y, train.index)


def describe(name):
    image = Image.open(f"data/images/{name}.jpg")
    image.draft("RGB", (72, 48))
    x = np.asarray(image.resize((72, 48)), np.float32) / 255
    x = x.mean(axis=2, keepdims=True)
    x = x[::12, ::12]
    return x.ravel()


x_train = pd.DataFrame([describe(name) for name in train.index], train.index)
x_test = pd.DataFrame([describe(name) for name in test.index], test.index)

scale = preprocessing.FunctionTransformer()
model = linear_model.LogisticRegression(C=0.01)
pipe = pipeline.make_pipeline(scale, model)

part = x_train.sample(frac=0.6, random_state=0)
rest = x_train.drop(part.index)
pipe.fit(part, y[part.index])
valid = pipe.predict_proba(rest)
print("valid:", metrics.roc_auc_score(train.loc[rest.index, kinds], valid))

pred = pipe.predict_proba(x_test)
pd.DataFrame(pred, test.index, kinds).to_csv("submission.csv")
