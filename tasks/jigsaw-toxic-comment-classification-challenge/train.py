import numpy as np
import pandas as pd
from sklearn import decomposition, ensemble, linear_model, metrics, multioutput
from sklearn import naive_bayes, neighbors, pipeline, preprocessing, svm
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

train = pd.read_csv("data/train.csv", index_col="id")
test = pd.read_csv("data/test.csv", index_col="id")
y = train.drop(columns="comment_text")

words = CountVectorizer(max_features=30)
scale = preprocessing.FunctionTransformer()
select = "passthrough"
model = naive_bayes.MultinomialNB()
each = multioutput.MultiOutputClassifier(model)
pipe = pipeline.make_pipeline(words, scale, select, each)

part = train.sample(frac=0.3, random_state=0)
rest = train.drop(part.index)
pipe.fit(part["comment_text"], y.loc[part.index])
pred = np.stack([p[:, 1] for p in pipe.predict_proba(rest["comment_text"])], axis=1)
print("valid:", metrics.roc_auc_score(y.loc[rest.index], pred))

pred = pipe.predict_proba(test["comment_text"])
columns = {name: p[:, 1] for name, p in zip(y, pred, strict=True)}
out = pd.DataFrame(columns, index=test.index)
out.to_csv("submission.csv")
