import numpy as np
import pandas as pd
from sklearn import decomposition, ensemble, linear_model, metrics, multioutput
from sklearn import neighbors, pipeline, preprocessing, svm
from sklearn.feature_extraction import text

train = pd.read_csv("data/train.csv", index_col="text_id")
test = pd.read_csv("data/test.csv", index_col="text_id")
targets = ["cohesion", "syntax", "vocabulary", "phraseology", "grammar", "conventions"]
y = train[targets]


def measure(texts):
    words = [t.split() for t in texts]
    return np.array([[len(w)] for w in words])


counts = preprocessing.FunctionTransformer(measure)
words = text.TfidfVectorizer(max_features=5)
features = pipeline.make_union(counts, words)
scale = preprocessing.FunctionTransformer()
model = neighbors.KNeighborsRegressor(3)
pipe = pipeline.make_pipeline(features, scale, model)

part = train.sample(frac=0.5, random_state=0)
rest = train.drop(part.index)
pipe.fit(part["full_text"], y.loc[part.index])
valid = pipe.predict(rest["full_text"])
print("valid:", metrics.root_mean_squared_error(y.loc[rest.index], valid))

pred = pipe.predict(test["full_text"])
pd.DataFrame(pred, test.index, targets).to_csv("submission.csv")
