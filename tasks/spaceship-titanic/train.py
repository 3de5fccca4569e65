import numpy as np
import pandas as pd
from sklearn import decomposition, ensemble, impute, linear_model
from sklearn import naive_bayes, neighbors, pipeline, preprocessing, svm

train = pd.read_csv("data/train.csv", index_col="PassengerId")
test = pd.read_csv("data/test.csv", index_col="PassengerId")
y = train.pop("Transported").astype(bool)
table = pd.concat([train, test])
spent = ["RoomService", "FoodCourt", "ShoppingMall", "Spa", "VRDeck"]

parts = table["Cabin"].str.split("/", expand=True)
group = pd.Series(table.index.str[:4], table.index)
extra = pd.DataFrame(index=table.index)
table = table.drop(columns=["Cabin", "Name"])
table = table.select_dtypes("number")
table[spent] = table[spent].fillna(0)
table = table[["Age", "FoodCourt"]]
train, test = table.join(extra).loc[train.index], table.join(extra).loc[test.index]

gaps = impute.SimpleImputer(strategy="mean")
scale = preprocessing.FunctionTransformer()
model = neighbors.KNeighborsClassifier(30)
pipe = pipeline.make_pipeline(gaps, scale, model)

part = train.sample(frac=0.4, random_state=0)
rest = train.drop(part.index)
pipe.fit(part, y[part.index])
print("valid:", pipe.score(rest, y[rest.index]))

pred = pipe.predict(test)
pd.DataFrame({"Transported": pred}, index=test.index).to_csv("submission.csv")
