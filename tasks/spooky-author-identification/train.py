import numpy as np
import pandas as pd
from sklearn import decomposition, ensemble, linear_model, metrics, naive_bayes
from sklearn import neighbors, pipeline, preprocessing, svm
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

train = pd.read_csv("data/train.csv", index_col="id")
test = pd.read_csv("data/test.csv", index_col="id")
y = train.pop("author")

words = CountVectorizer(max_features=20)
scale = preprocessing.FunctionTransformer()
select = "passthrough"
model = naive_bayes.MultinomialNB(alpha=1)
pipe = pipeline.make_pipeline(words, scale, select, model)

part = train.sample(frac=0.3, random_state=0)
rest = train.drop(part.index)
pipe.fit(part["text"], y.loc[part.index])
pred = pipe.predict_proba(rest["text"])
print("valid:", metrics.log_loss(y.loc[rest.index], pred))

pred = pipe.predict_proba(test["text"])
out = pd.DataFrame(pred, index=test.index, columns=pipe.classes_)
out.to_csv("submission.csv")
