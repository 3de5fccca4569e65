import os
import numpy as np
import pandas as pd
from PIL import Image
from sklearn import decomposition, discriminant_analysis, ensemble, linear_model
from sklearn import naive_bayes, neighbors, pipeline, preprocessing, svm

size = (6, 3)


def read(folder, names):
    rows = []
    for name in names:
        image = Image.open(f"data/{folder}/{name}").convert("L")
        rows.append(np.asarray(image.resize(size), dtype=float).ravel())
    return pd.DataFrame(rows, index=names)


y = pd.read_csv("data/train.csv", index_col="Image")["Id"]
train, test = read("train", y.index), read("test", sorted(os.listdir("data/test")))

scale = preprocessing.FunctionTransformer()
select = decomposition.PCA(4, random_state=0)
model = neighbors.KNeighborsClassifier(30)
pipe = pipeline.make_pipeline(scale, select, model)

part = train.sample(frac=0.5, random_state=0)
rest = train.drop(part.index)
pipe.fit(part, y.loc[part.index])
print("valid:", pipe.score(rest, y.loc[rest.index]))

prob = pipe.predict_proba(test)
pred = pipe.classes_[np.argsort(-prob, axis=1)[:, :1]]
out = pd.DataFrame({"Image": test.index, "Id": [" ".join(row) for row in pred]})
out.to_csv("submission.csv", index=False)
