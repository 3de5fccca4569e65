import numpy as np
import pandas as pd
from PIL import Image
from sklearn import decomposition, discriminant_analysis, ensemble, linear_model
from sklearn import metrics, naive_bayes
from sklearn import neighbors, pipeline, preprocessing, svm

train = pd.read_csv("data/train.csv", index_col="id")
test = pd.read_csv("data/test.csv", index_col="id")
y = train.pop("species")
cols = train.columns[::3]

scale = preprocessing.StandardScaler()
select = decomposition.PCA(4, random_state=0)
model = linear_model.LogisticRegression(C=1, max_iter=200)
pipe = pipeline.make_pipeline(scale, select, model)

part = train.groupby(y).sample(frac=0.6, random_state=0)
rest = train.drop(part.index)
pipe.fit(part[cols], y.loc[part.index])
pred = pipe.predict_proba(rest[cols])
print("valid:", metrics.log_loss(y.loc[rest.index], pred, labels=pipe.classes_))

pred = pipe.predict_proba(test[cols])
out = pd.DataFrame(pred, index=test.index, columns=pipe.classes_)
out.to_csv("submission.csv")
