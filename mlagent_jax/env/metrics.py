"""The metrics that a task may name, each with its direction and kind.

Scikit-learn and scipy compute them where they can; here are the conventions around
that: what the arrays hold, columns averaged how, and a finite score for every
prediction that `env.grading` lets pass.
"""

# scipy and scikit-learn describe their types only in part; strict mode would report
# nothing but that.
# pyright: standard

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics

from mlagent_jax.types import Direction

Kind = Literal["class", "probability", "number", "non_negative", "ranking"]
Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A score of predictions, with its direction stated.

    Attributes:
      name: as in task.toml.
      direction: "max" if a higher score is better.
      kind: what a target column holds: "class" one of the task's classes,
        "probability" a number in [0, 1], "number", "non_negative", or "ranking": up
        to five classes separated by spaces, best first.
      perfect: score of the labels themselves.
      function: (truth, predictions), both (rows, target columns), to the score;
        strings for kinds "class" and "ranking", float64 for the others.
    """

    name: str
    direction: Direction
    kind: Kind
    perfect: float
    function: Callable[[Array, Array], float]


def _accuracy(truth: Array, predicted: Array) -> float:
    return float(metrics.accuracy_score(truth[:, 0], predicted[:, 0]))


def _argmax_accuracy(truth: Array, predicted: Array) -> float:
    """Returns the share of rows whose largest column is the true one, ties first."""
    return float(np.mean(truth.argmax(axis=1) == predicted.argmax(axis=1)))


def _f1_macro(truth: Array, predicted: Array) -> float:
    score = metrics.f1_score(
        truth[:, 0],
        predicted[:, 0],
        average="macro",
        # A class that nobody predicts counts as 0, without a warning.
        zero_division=cast(Any, 0),
    )
    return float(score)


def _qwk(truth: Array, predicted: Array) -> float:
    """Returns Cohen's kappa with quadratic weights; classes are integers.

    The weight is the squared distance of two classes, so the sums over the confusion
    matrix are moments. Scikit-learn weighs positions among the classes that occur,
    which is another metric as soon as one between them is missing.
    """
    true, said = truth[:, 0].astype(np.float64), predicted[:, 0].astype(np.float64)
    by_chance = true.var() + said.var() + (true.mean() - said.mean()) ** 2
    return float(1 - np.mean((true - said) ** 2) / by_chance)


def _mean_column_roc_auc(truth: Array, predicted: Array) -> float:
    columns = range(truth.shape[1])
    scores = [metrics.roc_auc_score(truth[:, i], predicted[:, i]) for i in columns]
    return float(np.mean(scores))


def _log_loss(truth: Array, predicted: Array) -> float:
    """Returns the mean negative log-likelihood, base e; rows need not sum to 1."""
    if truth.shape[1] == 1:
        return float(metrics.log_loss(truth[:, 0], predicted[:, 0], labels=[0.0, 1.0]))
    classes = np.arange(truth.shape[1])
    rows = predicted / predicted.sum(axis=1, keepdims=True)
    return float(metrics.log_loss(truth.argmax(axis=1), rows, labels=classes))


def _mae(truth: Array, predicted: Array) -> float:
    return float(metrics.mean_absolute_error(truth, predicted))


def _rmse(truth: Array, predicted: Array) -> float:
    """Returns the root of the mean squared error over rows and columns together."""
    return math.sqrt(metrics.mean_squared_error(truth, predicted))


def _mcrmse(truth: Array, predicted: Array) -> float:
    """Returns the mean over columns of each column's root mean squared error."""
    return float(metrics.root_mean_squared_error(truth, predicted))


def _rmsle(truth: Array, predicted: Array) -> float:
    """Returns the mean over columns of the RMSE between log(1 + value)s."""
    return _mcrmse(np.log1p(truth), np.log1p(predicted))


def _pearson(truth: Array, predicted: Array) -> float:
    """Returns Pearson's r; 0.0 where constant predictions leave it undefined."""
    # The correlation does not depend on scale, but huge values overflow it.
    spread = np.ptp(predicted[:, 0])
    if spread == 0:
        return 0.0
    scaled = (predicted[:, 0] - predicted[:, 0].min()) / spread
    return float(cast(Any, stats.pearsonr(truth[:, 0], scaled)).statistic)


def _map_at_5(truth: Array, predicted: Array) -> float:
    """Returns the mean of 1/position of the true class among five, 0 if absent."""
    total = 0.0
    for label, ranking in zip(truth[:, 0], predicted[:, 0], strict=True):
        guesses = str(ranking).split()
        if label in guesses:
            total += 1 / (1 + guesses.index(label))
    return total / len(truth)


def _metric(
    name: str,
    direction: Direction,
    kind: Kind,
    function: Callable[[Array, Array], float],
) -> Metric:
    perfect = 1.0 if direction == "max" else 0.0
    return Metric(
        name=name, direction=direction, kind=kind, perfect=perfect, function=function
    )


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            _metric("accuracy", "max", "class", _accuracy),
            _metric("argmax_accuracy", "max", "number", _argmax_accuracy),
            _metric("f1_macro", "max", "class", _f1_macro),
            _metric("qwk", "max", "class", _qwk),
            _metric("roc_auc", "max", "probability", _mean_column_roc_auc),
            _metric("mean_column_roc_auc", "max", "probability", _mean_column_roc_auc),
            _metric("log_loss", "min", "probability", _log_loss),
            _metric("mae", "min", "number", _mae),
            _metric("rmse", "min", "number", _rmse),
            _metric("mcrmse", "min", "number", _mcrmse),
            _metric("rmsle", "min", "non_negative", _rmsle),
            _metric("pearson", "max", "number", _pearson),
            _metric("map_at_5", "max", "ranking", _map_at_5),
        )
    }
)
"""Every metric a task may name."""

SINGLE_COLUMN_METRICS = frozenset(
    {"accuracy", "f1_macro", "qwk", "roc_auc", "pearson", "map_at_5"}
)
MULTI_COLUMN_METRICS = frozenset({"argmax_accuracy"})
