import numpy as np
import pandas as pd
from sklearn import decomposition, ensemble, linear_model, naive_bayes
from sklearn import neighbors, pipeline, preprocessing, svm, tree

train = pd.read_csv("data/train.csv", index_col="Id")
test = pd.read_csv("data/test.csv", index_col="Id")
y = train.pop("Cover_Type")
cols = train.columns[:10:2]

scale = preprocessing.FunctionTransformer()
select = "passthrough"
model = tree.DecisionTreeClassifier(max_depth=2, random_state=0)
pipe = pipeline.make_pipeline(scale, select, model)

part = train.sample(frac=0.3, random_state=0)
rest = train.drop(part.index)
pipe.fit(part[cols], y.loc[part.index])
print("valid:", pipe.score(rest[cols], y.loc[rest.index]))

pred = pipe.predict(test[cols])
pd.DataFrame({"Cover_Type": pred}, index=test.index).to_csv("submission.csv")
