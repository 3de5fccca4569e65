import numpy as np
import pandas as pd
from sklearn import decomposition, ensemble, linear_model, metrics, naive_bayes
from sklearn import neighbors, pipeline, preprocessing, svm
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

train = pd.read_csv("data/train.csv")
test = pd.read_csv("data/test.csv")
y = train.pop("Insult")

words = CountVectorizer(max_features=30)
scale = preprocessing.FunctionTransformer()
select = decomposition.TruncatedSVD(2, random_state=0)
model = neighbors.KNeighborsClassifier(50)
pipe = pipeline.make_pipeline(words, scale, select, model)

part = train.sample(frac=0.3, random_state=0)
rest = train.drop(part.index)
pipe.fit(part["Comment"], y.loc[part.index])
pred = pipe.predict_proba(rest["Comment"])[:, 1]
print("valid:", metrics.roc_auc_score(y.loc[rest.index], pred))

pred = pipe.predict_proba(test["Comment"])[:, 1]
out = pd.DataFrame({"Insult": pred, "Date": test["Date"], "Comment": test["Comment"]})
out.to_csv("submission.csv", index=False)
