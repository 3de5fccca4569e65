import numpy as np
import pandas as pd
from sklearn import decomposition, ensemble, linear_model, naive_bayes
from sklearn import neighbors, pipeline, preprocessing, svm

train = pd.read_csv("data/train.csv", index_col="id")
test = pd.read_csv("data/test.csv", index_col="id")
y = train.pop("is_cross")
cols = train.columns[::3]

scale = preprocessing.FunctionTransformer()
select = decomposition.PCA(4, random_state=0)
model = linear_model.LogisticRegression(C=0.0001)
pipe = pipeline.make_pipeline(scale, select, model)

part = train.sample(frac=0.3, random_state=0)
rest = train.drop(part.index)
pipe.fit(part[cols], y.loc[part.index])
print("valid:", pipe.score(rest[cols], y.loc[rest.index]))

pred = pipe.predict_proba(test[cols])[:, 1]
pd.DataFrame({"is_cross": pred}, index=test.index).to_csv("submission.csv")
