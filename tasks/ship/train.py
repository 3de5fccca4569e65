import numpy as np
import pandas as pd
from sklearn import decomposition, ensemble, linear_model, naive_bayes
from sklearn import neighbors, pipeline, preprocessing, svm

train = pd.read_csv("data/train.csv", index_col="id")
test = pd.read_csv("data/test.csv", index_col="id")
y = train.pop("missing")
table = pd.concat([train, test])
table = table.select_dtypes("number")
table = table.fillna(0)
train, test = table.loc[train.index], table.loc[test.index]
cols = train.columns[::3]

scale = preprocessing.FunctionTransformer()
select = "passthrough"
model = neighbors.KNeighborsClassifier(50)
pipe = pipeline.make_pipeline(scale, select, model)

part = train.sample(frac=0.3, random_state=0)
rest = train.drop(part.index)
pipe.fit(part[cols], y.loc[part.index])
print("valid:", pipe.score(rest[cols], y.loc[rest.index]))

pred = pipe.predict(test[cols])
pd.DataFrame({"missing": pred}, index=test.index).to_csv("submission.csv")
