import os
import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from sklearn import decomposition, ensemble, linear_model, metrics, neighbors
from sklearn import pipeline, preprocessing, svm, tree

num_pixels = 500


def read(path):
    image = Image.open(path).convert("L")
    views = [image]
    table = {i: np.asarray(view).ravel() / 255 for i, view in enumerate(views)}
    rows, columns = 1 + np.indices((image.height, image.width)).reshape(2, -1)
    page = os.path.basename(path).split(".")[0]
    ids = [f"{page}_{row}_{column}" for row, column in zip(rows, columns, strict=True)]
    return pd.DataFrame(table, index=pd.Index(ids, name="id"))


tables = []
for name in sorted(os.listdir("data/train")):
    table = read(f"data/train/{name}")
    clean = Image.open(f"data/train_cleaned/{name}").convert("L")
    table["value"] = np.asarray(clean).ravel() / 255
    tables.append(table.sample(min(num_pixels, len(table)), random_state=0))
train = pd.concat(tables)
y = train.pop("value")

scale = preprocessing.FunctionTransformer()
select = "passthrough"
model = linear_model.Ridge(alpha=1)
pipe = pipeline.make_pipeline(scale, select, model)

part = train.sample(frac=0.3, random_state=0)
rest = train.drop(part.index)
pipe.fit(part, y.loc[part.index])
print("valid:", metrics.root_mean_squared_error(y.loc[rest.index], pipe.predict(rest)))

for number, name in enumerate(sorted(os.listdir("data/test"))):
    test = read(f"data/test/{name}")
    pred = pipe.predict(test)
    out = pd.DataFrame({"value": pred.clip(0, 1)}, index=test.index)
    out.to_csv("submission.csv", mode="a" if number else "w", header=not number)
