import zipfile

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from sklearn import decomposition, ensemble, linear_model, metrics, naive_bayes
from sklearn import neighbors, neural_network, pipeline, preprocessing, svm

y = pd.read_csv("data/train.csv", index_col="id")["has_cactus"]
test = pd.read_csv("data/sample_submission.csv", index_col="id")


def read_images(folder, names):
    with zipfile.ZipFile(f"data/{folder}.zip") as file:
        images = [Image.open(file.open(f"{folder}/{name}")) for name in names]
        x = np.stack([np.asarray(image, np.float32) for image in images]) / 255
    x = x - 0.5
    x = x[:, ::8, ::8]
    return pd.DataFrame(x.reshape(len(x), -1), names)


x_train = read_images("train", y.index)
x_test = read_images("test", test.index)

scale = preprocessing.FunctionTransformer()
model = neighbors.KNeighborsClassifier(10)
pipe = pipeline.make_pipeline(scale, model)

rest = x_train.sample(frac=0.25, random_state=0)
part = x_train.drop(rest.index).sample(n=120, random_state=0)
pipe.fit(part, y[part.index])
valid = pipe.predict_proba(rest)[:, 1]
print("valid:", metrics.roc_auc_score(y[rest.index], valid))

pred = pipe.predict_proba(x_test)[:, 1]
pd.DataFrame({"has_cactus": pred}, test.index).to_csv("submission.csv")
