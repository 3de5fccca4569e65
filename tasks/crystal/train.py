import numpy as np
import pandas as pd
from sklearn import decomposition, ensemble, linear_model, naive_bayes
from sklearn import neighbors, pipeline, preprocessing, svm

train = pd.read_csv("data/train.csv", index_col="id")
test = pd.read_csv("data/test.csv", index_col="id")
names = ["formation", "bandgap"]
y = train[names]
train = train.drop(columns=names)
cols = train.columns[::3]

to, back = np.positive, np.positive
scale = preprocessing.FunctionTransformer()
select = "passthrough"
model = neighbors.KNeighborsRegressor(50)
pipe = pipeline.make_pipeline(scale, select, model)

part = train.sample(frac=0.3, random_state=0)
rest = train.drop(part.index)
pipe.fit(part[cols], to(y.loc[part.index]))
print("valid:", pipe.score(rest[cols], to(y.loc[rest.index])))

pred = back(pipe.predict(test[cols])).clip(0)
pd.DataFrame(pred, index=test.index, columns=names).to_csv("submission.csv")
