import json
from pathlib import Path
import numpy as np
import pandas as pd
from sklearn import decomposition, ensemble, linear_model, metrics, naive_bayes
from sklearn import neighbors, pipeline, preprocessing, svm

train = pd.DataFrame(json.loads(Path("data/train.json").read_text())).set_index("id")
test = pd.DataFrame(json.loads(Path("data/test.json").read_text())).set_index("id")
y = train.pop("is_iceberg")
table = pd.concat([train, test])
one, two = [np.stack(table[name].tolist()) for name in ("band_1", "band_2")]
mix = [one.mean(axis=1), one.std(axis=1)]
table = pd.DataFrame(np.column_stack(mix), table.index)
train, test = table.loc[train.index], table.loc[test.index]

scale = preprocessing.FunctionTransformer()
select = "passthrough"
model = linear_model.LogisticRegression(C=1, max_iter=300)
pipe = pipeline.make_pipeline(scale, select, model)

part = train.sample(frac=0.3, random_state=0)
rest = train.drop(part.index)
pipe.fit(part, y.loc[part.index])
print("valid:", metrics.log_loss(y.loc[rest.index], pipe.predict_proba(rest)))

pred = pipe.predict_proba(test)[:, 1]
pd.DataFrame({"is_iceberg": pred}, index=test.index).to_csv("submission.csv")
