"""The texts of a task folder that `launch.tasks new` makes."""

import dataclasses
import json

from mlagent_jax.env.metrics import Metric
from mlagent_jax.env.task_folder import ENTRY_SCRIPT

_ORDERED = {"max": "higher is better", "min": "lower is better"}
_PREPARE = '''\
"""Data of the task `{name}`: the rows of data.csv, shuffled and divided."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from mlagent_jax.env.task import PreparedData, split_rows

NUM_TRAIN = {num_train}
DATA = Path(__file__).parent / "data.csv"
SHA256 = "{data_hash}"


def prepare(rng: np.random.Generator) -> PreparedData:
    """Returns the table in random order, the first rows for the agent."""
    content = DATA.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ValueError(f"{{DATA}} changed; make the task anew, or update SHA256")
    table = pd.read_csv(DATA, dtype=str)
    return split_rows(table.iloc[rng.permutation(len(table))], NUM_TRAIN)
'''
_STARTER = """\
import numpy as np
import pandas as pd
from sklearn import compose, decomposition, ensemble, impute, linear_model, metrics
from sklearn import naive_bayes, neighbors, pipeline, preprocessing, svm
from sklearn.feature_extraction import text

train = pd.read_csv("data/train.csv", index_col={id_column!r})
test = pd.read_csv("data/test.csv", index_col={id_column!r})
y = train.pop({target!r})
numbers = {numbers!r}
dates = {dates!r}
day_first = {day_first!r}
groups = {groups!r}
texts = {texts!r}
for table in (train, test):
    for name in dates:
        order = dict(format="mixed", dayfirst=name in day_first)
        days = pd.to_datetime(table[name], errors="coerce", utc=True, **order)
        table[name] = (days - pd.Timestamp("2000-01-01", tz="UTC")).dt.days
    for name in groups + texts:
        table[name] = table[name].fillna("").astype(str)

gaps = impute.SimpleImputer(strategy="mean", keep_empty_features=True)
scale = preprocessing.FunctionTransformer()
encode = preprocessing.OneHotEncoder(handle_unknown="ignore", max_categories=20)
words = text.CountVectorizer(max_features=10, token_pattern=r"\\S+")
columns = [(pipeline.make_pipeline(gaps, scale), numbers + dates), (encode, groups)]
columns += [(words, name) for name in texts]
features = compose.make_column_transformer(*columns, sparse_threshold=0)
model = {model}
pipe = pipeline.make_pipeline(features, model)

part = train.sample(n=min(len(train) // 2, 2_000), random_state=0)
rest = train.drop(part.index).head(5_000)
pipe.fit(part, y[part.index])
print("valid:", {valid})

pred = pipe.{predict}
pd.DataFrame({{{target!r}: pred}}, index=test.index).to_csv("submission.csv")
"""
_ONE = "random_state=0"
_CLASS_MODELS = {
    "use gradient boosting": f"ensemble.HistGradientBoostingClassifier({_ONE})",
    "use a random forest": f"ensemble.RandomForestClassifier(100, {_ONE})",
    "use logistic regression": "linear_model.LogisticRegression(max_iter=500)",
    "use naive Bayes": "naive_bayes.GaussianNB()",
    "use the nearest neighbor": "neighbors.KNeighborsClassifier(1)",
}
_NUMBER_MODELS = {
    "use gradient boosting": f"ensemble.HistGradientBoostingRegressor({_ONE})",
    "use a random forest": f"ensemble.RandomForestRegressor(60, {_ONE})",
    "use ridge regression": "linear_model.Ridge(1.0)",
    "use a support vector machine": "svm.SVR()",
    "use the nearest neighbor": "neighbors.KNeighborsRegressor(1)",
}
_KEEP = "keep_empty_features=True"
_UNKNOWN = 'handle_unknown="use_encoded_value", unknown_value=-1'
_PIECES = 'analyzer="char_wb", ngram_range=(2, 3), max_features=300'
# (name that the starter assigns, what the change is called, the new value)
_MOVES = (
    (
        "gaps",
        "fill gaps with the median",
        f'impute.SimpleImputer(strategy="median", {_KEEP})',
    ),
    ("scale", "standardize the features", "preprocessing.StandardScaler()"),
    (
        "scale",
        "spread the features evenly",
        "preprocessing.QuantileTransformer(n_quantiles=20)",
    ),
    ("encode", "encode groups as numbers", f"preprocessing.OrdinalEncoder({_UNKNOWN})"),
    ("words", "use three hundred words", "text.TfidfVectorizer(max_features=300)"),
    ("words", "use pieces of words", f"text.TfidfVectorizer({_PIECES})"),
    (
        "part",
        "train on more rows",
        f"train.sample(n=min(9 * len(train) // 10, 20_000), {_ONE})",
    ),
    (
        "part",
        "train on few rows",
        f"train.sample(n=min(len(train) // 8, 300), {_ONE})",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What the texts depend on.

    Attributes:
      name: of the task.
      target: column to predict.
      id_column: name that the prepared rows' ids get.
      metric: what scores the target.
      classes: labels of the target, empty for numbers.
      kinds: feature column -> what it holds.
      day_first: date columns that put the day before the month.
      gaps: column -> share of its cells that are empty.
      num_train: number of visible rows.
      num_hidden: number of hidden rows.
      data_hash: sha256 of data.csv.
    """

    name: str
    target: str
    id_column: str
    metric: Metric
    classes: tuple[str, ...]
    kinds: dict[str, str]
    day_first: list[str]
    gaps: dict[str, float]
    num_train: int
    num_hidden: int
    data_hash: str

    def of_kind(self, kind: str) -> list[str]:
        """Returns the columns of one kind."""
        return [name for name, found in self.kinds.items() if found == kind]

    @property
    def is_number(self) -> bool:
        """Whether the starter needs a regressor."""
        return self.metric.kind in {"number", "non_negative"}


def render(context: Context) -> dict[str, str]:
    """Returns file name -> text."""
    return {
        "task.toml": _toml(context),
        "description.md": _description(context),
        "prepare.py": _PREPARE.format(**vars(context)),
        ENTRY_SCRIPT: _starter(context),
        "moves.toml": _moves(context),
    }


def _toml(context: Context) -> str:
    """Returns task.toml; its scores are those of a perfect and of no prediction."""
    metric = context.metric
    lines = [
        f"id = {_quote(context.name)}",
        "version = 1",
        'split = "held_in"',
        f"modality = {_quote('text' if context.of_kind('text') else 'tabular')}",
        f"title = {_quote('Predict ' + context.target)}",
        f"metric = {_quote(metric.name)}",
        f"direction = {_quote(metric.direction)}",
        f"id_column = {_quote(context.id_column)}",
        f"target_columns = [{_quote(context.target)}]",
    ]
    if context.classes:
        lines.append(f"classes = [{', '.join(map(_quote, context.classes))}]")
    lines += ["seed = 0", "", "[rows]"]
    lines += [f"train = {context.num_train}", f"test = {context.num_hidden}", ""]
    worst = -1e12 if metric.direction == "max" else 1e12
    lines += [
        "[scores]",
        f"baseline = {worst!r}",
        f"seed_mean = {worst!r}",
        "seed_std = 0.0",
        f"best = {metric.perfect!r}",
        'best_from = "not measured"',
        "stderr = 0.0",
        "",
        "[limits]",
        "wall_s = 60.0",
        "cpu_s = 60.0",
        "",
        "[source]",
        'data = "data.csv, made by launch.tasks new"',
        'license = "not stated"',
    ]
    return "\n".join(lines) + "\n"


def _description(context: Context) -> str:
    metric = context.metric
    what = (
        "one of " + ", ".join(context.classes[:20]) if context.classes else "a number"
    )
    if context.metric.kind == "probability":
        what = "the probability (0 to 1) that it is 1"
    lines = [
        "Predict one column of a table from the others.",
        "",
        f"`data/train.csv` has the column `{context.target}` to learn from;",
        f"`data/test.csv` is the same without it. `{context.id_column}` numbers rows.",
        "",
        *(f"- `{name}`: {_column_text(context, name)}" for name in context.kinds),
        "",
        f"Write `submission.csv` with the columns `{context.id_column}` and",
        f"`{context.target}` ({what}), one row for every row of `data/test.csv`;",
        "`data/sample_submission.csv` shows the format.",
        f"Score: {metric.name}, {_ORDERED[metric.direction]}.",
    ]
    return "\n".join(lines) + "\n"


def _column_text(context: Context, name: str) -> str:
    gaps = context.gaps.get(name, 0.0)
    return context.kinds[name] + (f", {gaps:.0%} empty" if gaps else "")


def _starter(context: Context) -> str:
    right, predicted = "y[rest.index]", "pipe.predict(rest)"
    model = "neighbors.KNeighborsClassifier(5)"
    predict = "predict(test)"
    valid = f"metrics.accuracy_score({right}, {predicted})"
    if context.metric.name == "f1_macro":
        valid = f'metrics.f1_score({right}, {predicted}, average="macro")'
    if context.metric.kind == "probability":
        predict = "predict_proba(test)[:, 1]"
        score = {"roc_auc": "roc_auc_score"}.get(context.metric.name, "log_loss")
        valid = f"metrics.{score}({right}, pipe.predict_proba(rest)[:, 1])"
    if context.is_number:
        model = "neighbors.KNeighborsRegressor(5)"
        valid = f"metrics.root_mean_squared_error({right}, {predicted})"
    if context.metric.kind == "non_negative":
        predict = "predict(test).clip(0)"
    return _STARTER.format(
        id_column=context.id_column,
        target=context.target,
        numbers=context.of_kind("number"),
        dates=context.of_kind("date"),
        day_first=context.day_first,
        groups=context.of_kind("group"),
        texts=context.of_kind("text"),
        model=model,
        valid=valid,
        predict=predict,
    )


def _moves(context: Context) -> str:
    models = _NUMBER_MODELS if context.is_number else _CLASS_MODELS
    moves = [*_MOVES, *(("model", say, code) for say, code in models.items())]
    blocks = [
        f"[[{name}]]\nsay = {_quote(say)}\nfind = '^{name} = .*$'\n"
        f"code = {_quote(f'{name} = {code}')}\n"
        for name, say, code in moves
    ]
    head = "# Changes that the offline expert knows; format: tasks/README.md.\n\n"
    return head + "\n".join(blocks)


def _quote(text: str) -> str:
    """Returns a TOML string; JSON's escapes are TOML's."""
    return json.dumps(text, ensure_ascii=False)
