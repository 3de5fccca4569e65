import numpy as np
import pandas as pd
from scipy import sparse
from sklearn import decomposition, ensemble, linear_model, naive_bayes
from sklearn import neighbors, neural_network, pipeline, preprocessing

train = pd.read_csv("data/train.csv", index_col="node_id")
test = pd.read_csv("data/test.csv", index_col="node_id")
edges = pd.read_csv("data/edges.csv").to_numpy()
features = np.load("data/features.npy")
old, valid = train[train["year"] < 2018], train[train["year"] == 2018]

n = len(features)
links = np.concatenate([edges, edges[:, ::-1]])
graph = sparse.csr_matrix((np.ones(len(links)), links.T), (n, n))
graph = preprocessing.normalize(graph, "l1")
known = np.zeros((n, 40))
known[old.index, old["label"]] = 1
x = features[:, :16]
hops = 0
for _ in range(hops):
    x = x + graph @ x

scale = preprocessing.FunctionTransformer()
model = linear_model.SGDClassifier(alpha=0.1, max_iter=10, random_state=0)
pipe = pipeline.make_pipeline(scale, model)

part = old.sample(frac=0.5, random_state=0)
pipe.fit(x[part.index], part["label"])
print("valid:", pipe.score(x[valid.index], valid["label"]))

pred = pipe.predict(x[test.index])
pd.DataFrame({"label": pred}, index=test.index).to_csv("submission.csv")
