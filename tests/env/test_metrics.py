"""Metrics against their definitions, written out, on random inputs."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from mlagent_jax.env.metrics import METRICS

TOLERANCE = 1e-9
NUM_ROWS = 60
CLASSES = ("0", "1", "2", "3")


def accuracy(truth, predicted):
    return np.mean([t == p for t, p in zip(truth[:, 0], predicted[:, 0], strict=True)])


def argmax_accuracy(truth, predicted):
    pairs = zip(truth.tolist(), predicted.tolist(), strict=True)
    return np.mean([t.index(max(t)) == p.index(max(p)) for t, p in pairs])


def f1_macro(truth, predicted):
    scores = []
    for label in sorted({*truth[:, 0], *predicted[:, 0]}):
        is_true, is_said = truth[:, 0] == label, predicted[:, 0] == label
        hits = np.sum(is_true & is_said)
        scores.append(2 * hits / (is_true.sum() + is_said.sum()))
    return np.mean(scores)


def qwk(truth, predicted):
    true, said = truth[:, 0].astype(float), predicted[:, 0].astype(float)
    chance = np.mean((true[:, None] - said[None, :]) ** 2)
    return 1 - np.mean((true - said) ** 2) / chance


def roc_auc(truth, predicted):
    scores = []
    for column in range(truth.shape[1]):
        is_true = truth[:, column] == 1
        ranks = stats.rankdata(predicted[:, column])
        num_true, num_false = is_true.sum(), (~is_true).sum()
        wins = ranks[is_true].sum() - num_true * (num_true + 1) / 2
        scores.append(wins / (num_true * num_false))
    return np.mean(scores)


def log_loss(truth, predicted):
    if truth.shape[1] == 1:
        truth = np.hstack([1 - truth, truth])
        predicted = np.hstack([1 - predicted, predicted])
    rows = predicted / predicted.sum(axis=1, keepdims=True)
    return -np.mean(np.log(rows[truth == 1]))


def mae(truth, predicted):
    return np.mean(np.abs(truth - predicted))


def rmse(truth, predicted):
    return np.sqrt(np.mean((truth - predicted) ** 2))


def mcrmse(truth, predicted):
    return np.mean(np.sqrt(np.mean((truth - predicted) ** 2, axis=0)))


def rmsle(truth, predicted):
    errors = np.log(1 + truth) - np.log(1 + predicted)
    return np.mean(np.sqrt(np.mean(errors**2, axis=0)))


def pearson(truth, predicted):
    return np.corrcoef(truth[:, 0], predicted[:, 0])[0, 1]


def map_at_5(truth, predicted):
    scores = []
    for label, ranking in zip(truth[:, 0], predicted[:, 0], strict=True):
        places = [i for i, guess in enumerate(ranking.split()) if guess == label]
        scores.append(1 / (places[0] + 1) if places else 0)
    return np.mean(scores)


DEFINITIONS = {
    "accuracy": accuracy,
    "argmax_accuracy": argmax_accuracy,
    "f1_macro": f1_macro,
    "qwk": qwk,
    "roc_auc": roc_auc,
    "mean_column_roc_auc": roc_auc,
    "log_loss": log_loss,
    "mae": mae,
    "rmse": rmse,
    "mcrmse": mcrmse,
    "rmsle": rmsle,
    "pearson": pearson,
    "map_at_5": map_at_5,
}


def draw(name: str, num_columns: int, rng: np.random.Generator):
    """Returns random (truth, predictions) of the metric's kind."""
    shape = (NUM_ROWS, num_columns)
    kind = METRICS[name].kind
    if kind == "class":
        return rng.choice(CLASSES, shape), rng.choice(CLASSES, shape)
    if kind == "ranking":
        rankings = [" ".join(rng.permutation(CLASSES)[:3]) for _ in range(NUM_ROWS)]
        return rng.choice(CLASSES, shape), np.array(rankings)[:, None]
    if kind == "probability" or name == "argmax_accuracy":
        # Ties count half in a ROC curve.
        predicted = rng.random(shape).round(1) + 0.01
        if num_columns == 1 or name == "mean_column_roc_auc":
            return (rng.random(shape) < 0.4).astype(float), predicted / 1.02
        return np.eye(num_columns)[rng.integers(0, num_columns, NUM_ROWS)], predicted
    return rng.gamma(2, 3, shape), rng.gamma(2, 3, shape)


@pytest.mark.parametrize("num_columns", [1, 4])
@pytest.mark.parametrize("name", METRICS)
def test_metrics_equal_their_definitions(name, num_columns):
    rng = np.random.default_rng(num_columns)
    for _ in range(5):
        truth, predicted = draw(name, num_columns, rng)
        expected = DEFINITIONS[name](truth, predicted)
        score = METRICS[name].function(truth, predicted)
        assert score == pytest.approx(expected, abs=TOLERANCE)


def test_kappa_weighs_classes_by_distance_where_some_never_occur():
    truth = np.array([["1"], ["1"], ["5"], ["6"]])
    predicted = np.array([["1"], ["5"], ["5"], ["5"]])
    # Squared distances: 16 + 1 in the four rows, 140 in all sixteen pairs.
    by_chance = (2 * 3 * 16 + 16 + 25 + 3 * 1) / 4
    score = METRICS["qwk"].function(truth, predicted)
    assert score == pytest.approx(1 - 17 / by_chance, abs=TOLERANCE)
    assert score == pytest.approx(qwk(truth, predicted), abs=TOLERANCE)


def test_nearly_constant_predictions_keep_their_correlation():
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 0.25, 0.5, 1], NUM_ROWS)
    predicted = 0.5 + 1e-13 * rng.random(NUM_ROWS)
    true, said = ([Fraction(float(x)) for x in xs] for xs in (truth, predicted))
    true, said = ([x - sum(xs) / NUM_ROWS for x in xs] for xs in (true, said))
    products = sum(t * s for t, s in zip(true, said, strict=True))
    square = products**2 / (sum(t * t for t in true) * sum(s * s for s in said))
    score = METRICS["pearson"].function(truth[:, None], predicted[:, None])
    assert abs(score) == pytest.approx(math.sqrt(square), abs=TOLERANCE)
    assert np.sign(score) == np.sign(products)


def test_a_confident_mistake_costs_36_as_in_mle_bench():
    truth, predicted = np.array([[1.0], [0.0]]), np.array([[0.0], [0.0]])
    score = METRICS["log_loss"].function(truth, predicted)
    assert score == pytest.approx(-np.log(np.finfo(float).eps) / 2)


def test_constant_predictions_have_a_correlation_of_zero():
    truth, predicted = np.array([[1.0], [2.0], [4.0]]), np.full((3, 1), 0.5)
    assert METRICS["pearson"].function(truth, predicted) == 0.0
