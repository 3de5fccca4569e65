import random
import zipfile

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from sklearn import decomposition, ensemble, linear_model, metrics, naive_bayes
from sklearn import neighbors, neural_network, pipeline, preprocessing, svm

test = pd.read_csv("data/sample_submission.csv", index_col="id")
num_images = 150


def describe(file, name):
    image = Image.open(file.open(name))
    image.draft("RGB", (32, 32))
    x = np.asarray(image.convert("L").resize((8, 8)), np.float32) / 255
    x = x - 0.5
    return x.ravel()


with zipfile.ZipFile("data/train.zip") as file:
    names = [n for n in file.namelist() if n.endswith(".jpg")]
    names = random.Random(0).sample(names, min(num_images, len(names)))
    train = pd.DataFrame([describe(file, name) for name in names])
y = pd.Series([int("dog" in name) for name in names])
with zipfile.ZipFile("data/test.zip") as file:
    x_test = pd.DataFrame([describe(file, f"test/{i}.jpg") for i in test.index])

scale = preprocessing.FunctionTransformer()
model = neighbors.KNeighborsClassifier(20)
pipe = pipeline.make_pipeline(scale, model)

part = train.sample(frac=0.7, random_state=0)
rest = train.drop(part.index)
pipe.fit(part, y[part.index])
print("valid:", metrics.log_loss(y[rest.index], pipe.predict_proba(rest)))

pred = pipe.predict_proba(x_test)[:, 1]
pd.DataFrame({"label": pred}, test.index).to_csv("submission.csv")
