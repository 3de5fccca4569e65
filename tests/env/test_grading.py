"""Grading: every metric against a hand-computed value, every way to be refused."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlagent_jax.env import grading
from mlagent_jax.env.grading import METRICS, grade, read_submission, score_rows
from mlagent_jax.env.metrics import MULTI_COLUMN_METRICS
from mlagent_jax.errors import SubmissionError, TaskError
from mlagent_jax.types import Limits, Task


def make_task(
    folder: Path,
    metric: str,
    labels: dict[str, list[Any]],
    classes: tuple[str, ...] = (),
    target_range: tuple[float, float] | None = None,
) -> Task:
    """Returns a task whose hidden rows are `labels`, parts alternating."""
    table = pd.DataFrame(labels)
    targets = tuple(table.columns)
    table.insert(0, "id", range(10, 10 + len(table)))
    table["part"] = ["selection", "test"] * (len(table) // 2)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "labels.csv", index=False)
    return Task(
        id="toy",
        version=1,
        split="held_in",
        modality="tabular",
        description="A toy.",
        metric=metric,
        direction=METRICS[metric].direction,
        id_column="id",
        target_columns=targets,
        classes=classes,
        target_range=target_range,
        starter={"train.py": ""},
        entry_script="train.py",
        baseline=0.0,
        baseline_std=0.0,
        best=1.0,
        limits=Limits(),
        public_dir=folder,
        private_dir=folder,
        file_hashes={"private/labels.csv": str(folder)},
    )


@pytest.fixture(name="numbers")
def fixture_numbers(tmp_path):
    return make_task(tmp_path, "mae", {"y": [1.0, 2.0, 3.0, 4.0]})


@pytest.fixture(name="labelled")
def fixture_labelled(tmp_path):
    labels = {"y": ["a", "b", "a", "b"]}
    return make_task(tmp_path, "accuracy", labels, classes=("a", "b"))


def csv_of(**columns: list[Any]) -> bytes:
    return (
        pd.DataFrame({"id": [10, 11, 12, 13], **columns}).to_csv(index=False).encode()
    )


def reason_of(task: Task, data: bytes) -> str:
    with pytest.raises(SubmissionError) as caught:
        read_submission(data, task)
    return caught.value.reason


# --- metrics ---------------------------------------------------------------------

TWO_ROWS = [[1.0, 2.0], [3.0, 6.0]]
HAND_COMPUTED = [
    # A tie counts for the first of the largest columns.
    ("argmax_accuracy", [[0, 1], [1, 0], [0, 1]], [[1, 9], [3, 3], [2, 2]], 2 / 3),
    ("accuracy", [["a"], ["b"], ["b"]], [["a"], ["a"], ["b"]], 2 / 3),
    # a: precision 1/2, recall 1; b: precision 1, recall 1/2; both F1 = 2/3.
    ("f1_macro", [["a"], ["b"], ["b"]], [["a"], ["a"], ["b"]], 2 / 3),
    # Quadratic kappa: mean squared error 1/3, 1 if both were independent.
    ("qwk", [["1"], ["2"], ["3"]], [["1"], ["2"], ["2"]], 2 / 3),
    ("roc_auc", [[0.0], [1.0], [1.0]], [[0.2], [0.1], [0.3]], 0.5),
    (
        "mean_column_roc_auc",
        [[0.0, 1.0], [1.0, 0.0]],
        [[0.1, 0.1], [0.2, 0.2]],
        0.5,
    ),
    ("log_loss", [[1.0], [0.0]], [[0.5], [0.75]], (math.log(2) + math.log(4)) / 2),
    # Rows are scaled to sum 1: (1, 3) / 4.
    ("log_loss", [[1.0, 0.0], [0.0, 1.0]], [[1.0, 3.0], [1.0, 3.0]], 0.8370),
    ("mae", [[1.0], [2.0]], [[2.0], [4.0]], 1.5),
    ("rmse", TWO_ROWS, [[1.0, 2.0], [3.0, 2.0]], 2.0),
    ("mcrmse", TWO_ROWS, [[1.0, 2.0], [3.0, 2.0]], math.sqrt(8) / 2),
    ("rmsle", [[0.0], [math.e - 1]], [[0.0], [0.0]], math.sqrt(0.5)),
    ("pearson", [[1.0], [2.0], [3.0]], [[10.0], [20.0], [30.0]], 1.0),
    ("map_at_5", [["a"], ["b"], ["c"]], [["a b"], ["a b"], ["a b"]], 0.5),
]


@pytest.mark.parametrize(("name", "truth", "predicted", "expected"), HAND_COMPUTED)
def test_metrics_equal_hand_computed_values(name, truth, predicted, expected):
    score = METRICS[name].function(np.array(truth), np.array(predicted))
    assert score == pytest.approx(expected, abs=1e-4)


def test_every_metric_has_a_hand_computed_value():
    assert {case[0] for case in HAND_COMPUTED} == set(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_labels_score_perfectly_and_better_than_others(name, tmp_path):
    kind = METRICS[name].kind
    values: list[Any] = (
        [1, 2, 1, 2, 3, 1] if kind in {"class", "ranking"} else [0, 1, 1, 0, 0, 1]
    )
    classes = ("1", "2", "3") if kind in {"class", "ranking"} else ()
    columns = {"y": values}
    if name in MULTI_COLUMN_METRICS:
        columns["z"] = [1 - value for value in values]
    task = make_task(tmp_path, name, columns, classes)
    labels = grading.read_labels(task)
    assert score_rows(task, labels, labels) == pytest.approx(METRICS[name].perfect)
    worse = labels.assign(y=2.0 if "z" in labels else labels["y"].to_numpy()[::-1])
    assert (
        task.sign * score_rows(task, labels, worse) < task.sign * METRICS[name].perfect
    )


@pytest.mark.parametrize("name", METRICS)
def test_constant_predictions_have_a_finite_score(name, tmp_path):
    kind = METRICS[name].kind
    values: list[Any] = [1, 2, 1, 2] if kind in {"class", "ranking"} else [0, 1, 1, 0]
    classes = ("1", "2") if kind in {"class", "ranking"} else ()
    task = make_task(tmp_path, name, {"y": values}, classes)
    labels = grading.read_labels(task)
    constant = labels.assign(y=labels["y"].iloc[0])
    assert math.isfinite(score_rows(task, labels, constant))


def test_pearson_survives_huge_predictions():
    truth = np.array([[1.0], [2.0], [3.0]])
    score = METRICS["pearson"].function(truth, truth * 3e11)
    assert score == pytest.approx(1.0)


# --- reading ---------------------------------------------------------------------


def test_rows_and_columns_may_come_in_any_order(tmp_path):
    labels = {"y": [1.0, 2.0, 3.0, 4.0], "z": [5.0, 6.0, 7.0, 8.0]}
    task = make_task(tmp_path, "mcrmse", labels)
    table = pd.DataFrame({"id": [10, 11, 12, 13], "y": [1, 2, 3, 0], "z": [0, 6, 7, 8]})
    shuffled = table.iloc[[2, 0, 3, 1], ::-1]
    for part in ("selection", "test"):
        straight = grade(task, table.to_csv(index=False).encode(), part)
        assert straight == grade(task, shuffled.to_csv(index=False).encode(), part) > 0


def test_ids_that_end_in_a_space_are_found_in_any_order(tmp_path):
    task = make_task(tmp_path, "mae", {"y": [1.0, 2.0, 3.0, 4.0]})
    table = pd.read_csv(tmp_path / "labels.csv")
    table["id"] = ["you\n", "you ", " you", "me"]
    table.to_csv(tmp_path / "labels.csv", index=False)
    task = dataclasses.replace(task, file_hashes={"private/labels.csv": "other"})
    shuffled = table.filter(["id", "y"]).iloc[[2, 0, 3, 1]].replace("me", " me ")
    assert grade(task, shuffled.to_csv(index=False).encode(), "test") == 0.0


def test_parts_are_scored_apart(numbers):
    submission = csv_of(y=[1.0, 0.0, 3.0, 0.0])
    assert grade(numbers, submission, "selection") == 0.0
    assert grade(numbers, submission, "test") == 3.0


def test_class_labels_may_be_strings_integers_or_whole_floats(tmp_path, labelled):
    assert grade(labelled, csv_of(y=["a", "b", "a", "b"]), "test") == 1.0
    counted = make_task(tmp_path / "n", "accuracy", {"y": [1, 2, 1, 2]}, ("1", "2"))
    assert grade(counted, csv_of(y=[1, 2, 1, 2]), "test") == 1.0
    assert grade(counted, csv_of(y=[1.0, 2.0, 1.0, 2.0]), "test") == 1.0
    assert reason_of(counted, csv_of(y=[1.5, 2, 1, 2])) == "unknown_class"
    truths = make_task(
        tmp_path / "b", "accuracy", {"y": [True, False] * 2}, ("False", "True")
    )
    assert grade(truths, csv_of(y=[True, False, False, False]), "selection") == 0.5


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"\n\n", "empty_file"),
        (b"\xff\xfe\x00", "not_text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "not_text"),
        (b'id,y\n10,"1\n', "not_csv"),
        (b"id,y\n10,1\n11\n", "not_csv"),
        (b"id,y\n10,1,7\n", "not_csv"),
        (b"id,x\n10,1\n", "wrong_columns"),
        (b"id,y,y\n10,1,1\n", "wrong_columns"),
        (b",id,y\n0,10,1\n", "wrong_columns"),
        (csv_of(y=[1, 2, 3, 4], z=[1, 2, 3, 4]), "wrong_columns"),
        (b"id,y\n", "missing_ids"),
        (b"id,y\n10,1\n11,2\n12,3\n", "missing_ids"),
        (b"id,y\n10,1\n11,2\n12,3\n14,4\n", "unknown_ids"),
        (b"id,y\n10,1\n11,2\n12,3\n13,4\n13,4\n", "duplicate_ids"),
        (csv_of(y=[1, 2, 3, None]), "missing_values"),
        (csv_of(y=[1, 2, 3, "NaN"]), "missing_values"),
        (csv_of(y=[1, 2, 3, "many"]), "not_numeric"),
        (csv_of(y=[1, 2, 3, "inf"]), "out_of_range"),
        (csv_of(y=[1, 2, 3, "1e300"]), "out_of_range"),
        (csv_of(y=[1, 2, 3, "1e999"]), "out_of_range"),
    ],
)
def test_broken_files_are_refused_with_a_stable_reason(numbers, data, reason):
    assert reason_of(numbers, data) == reason


def test_booleans_may_be_written_in_every_usual_way(tmp_path):
    labels = {"y": ["True", "False", "True", "False"]}
    task = make_task(tmp_path, "accuracy", labels, classes=("False", "True"))
    for true, false in (("True", "False"), (1, 0), (1.0, 0.0), ("TRUE", "false")):
        data = csv_of(y=[true, false, true, false])
        assert grade(task, data, "test") == grade(task, data, "selection") == 1.0
    assert reason_of(task, csv_of(y=["yes", "no", "yes", "no"])) == "unknown_class"


def test_declared_further_columns_are_ignored_and_others_refused(numbers):
    task = dataclasses.replace(numbers, optional_columns=("Date",))
    data = csv_of(y=[1, 2, 3, 4], Date=["", "x", "y", "z"])
    assert grade(task, data, "test") == 0.0
    assert reason_of(numbers, data) == "wrong_columns"
    data = csv_of(y=[1, 2, 3, 4], Dat=[1, 2, 3, 4])
    assert reason_of(task, data) == "wrong_columns"


def test_unscored_rows_must_be_there_and_do_not_count(tmp_path):
    task = make_task(tmp_path, "mae", {"y": [1.0, 2.0, 3.0, 4.0]})
    labels = pd.read_csv(tmp_path / "labels.csv")
    labels.loc[0, "part"] = "unscored"
    labels.to_csv(tmp_path / "labels.csv", index=False)
    task = dataclasses.replace(task, file_hashes={"private/labels.csv": "changed"})
    assert grade(task, csv_of(y=[99, 2, 3, 4]), "selection") == 0.0
    short = b"id,y\n11,2\n12,3\n13,4\n"
    assert reason_of(task, short) == "missing_ids"


def test_a_huge_file_is_refused_unread(numbers, monkeypatch):
    monkeypatch.setattr(grading, "MAX_SUBMISSION_BYTES", 20)
    assert reason_of(numbers, csv_of(y=[1, 2, 3, 4])) == "file_too_large"


def test_a_huge_file_is_read_where_the_sample_is_large_too(numbers, monkeypatch):
    monkeypatch.setattr(grading, "MAX_SUBMISSION_BYTES", 20)
    sample = numbers.public_dir / numbers.sample_file
    sample.parent.mkdir(exist_ok=True)
    sample.write_bytes(csv_of(y=[0, 0, 0, 0]))
    data = csv_of(y=[1, 2, 3, 4])
    assert len(read_submission(data, numbers)) == 4
    assert reason_of(numbers, data + b"\n" * 1_000) == "file_too_large"


def test_a_huge_cell_is_refused(numbers):
    assert reason_of(numbers, b"id,y\n10," + b"1" * 200_000 + b"\n") == "not_csv"


def test_values_outside_the_metric_or_task_range_are_refused(tmp_path):
    chance = make_task(tmp_path / "p", "roc_auc", {"y": [0, 1, 1, 0]})
    assert reason_of(chance, csv_of(y=[0.1, 0.2, 1.2, 0])) == "out_of_range"
    amount = make_task(tmp_path / "a", "rmsle", {"y": [0, 1, 1, 0]})
    assert reason_of(amount, csv_of(y=[0.1, 0.2, -0.1, 0])) == "out_of_range"
    mark = make_task(tmp_path / "m", "rmse", {"y": [1, 2, 3, 4]}, target_range=(1, 5))
    assert reason_of(mark, csv_of(y=[1, 2, 6, 4])) == "out_of_range"


def test_probabilities_that_are_all_zero_are_refused(tmp_path):
    task = make_task(tmp_path, "log_loss", {"a": [1, 0, 1, 0], "b": [0, 1, 0, 1]})
    data = csv_of(a=[1, 0, 0, 1], b=[0, 1, 0, 1])
    assert reason_of(task, data) == "out_of_range"


@pytest.mark.parametrize("value", ["a a", "a b c d e f", "zebra", "a,b"])
def test_rankings_hold_up_to_five_different_classes(tmp_path, value):
    classes = ("a", "b", "c", "d", "e", "f")
    task = make_task(tmp_path, "map_at_5", {"y": ["a", "b", "a", "b"]}, classes)
    assert grade(task, csv_of(y=["b a", "b", "a", "b"]), "selection") == 0.75
    assert reason_of(task, csv_of(y=[value, "b", "a", "b"])) == "bad_ranking"


def test_messages_help_but_never_tell_a_label(tmp_path):
    task = make_task(tmp_path, "mae", {"y": [777.25] * 4})
    for data in [b"id,y\n10,1\n", csv_of(y=[1, 2, 3, "x"]), csv_of(x=[1, 2, 3, 4])]:
        with pytest.raises(SubmissionError) as caught:
            read_submission(data, task)
        assert "777" not in str(caught.value)
    with pytest.raises(SubmissionError, match=r"index=False"):
        read_submission(b",id,y\n0,10,1\n", task)
    with pytest.raises(SubmissionError, match=r"3 rows of data/test.csv are missing"):
        read_submission(b"id,y\n10,1\n", task)


def test_a_metric_that_is_not_finite_is_our_bug(numbers, monkeypatch):
    broken = dataclasses.replace(METRICS["mae"], function=lambda t, p: math.nan)
    monkeypatch.setattr(grading, "METRICS", {"mae": broken})
    with pytest.raises(ValueError, match="gave nan"):
        grade(numbers, csv_of(y=[1, 2, 3, 4]), "test")


def test_missing_labels_are_a_task_error(numbers, tmp_path):
    gone = dataclasses.replace(numbers, private_dir=tmp_path / "gone", file_hashes={})
    with pytest.raises(TaskError, match=r"run launch.prepare again"):
        grade(gone, csv_of(y=[1, 2, 3, 4]), "test")
