"""`python -m launch.tasks`: every command, and tasks made from unknown CSV files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launch.tasks import importing
from launch.tasks.commands import Options, dispatch
from launch.tasks.scaffold import make_task_folder
from mlagent_jax.env.task import load_task, prepare_task
from mlagent_jax.env.task_check import check_grading
from mlagent_jax.env.task_folder import read_spec
from mlagent_jax.errors import ConfigError, TaskError

ROOT = Path(__file__).parent.parent.parent
OPTIONS = Options(task_root=str(ROOT / "tasks"))
NUM_ROWS = 90


def make_frame(num_rows: int = NUM_ROWS) -> pd.DataFrame:
    """Returns a table with everything that makes CSV files unpleasant."""
    rng = np.random.default_rng(0)
    age = rng.integers(18, 80, num_rows).astype(float)
    spent = rng.gamma(2, 50, num_rows).round(2)
    days = pd.Timestamp("2021-03-01") + pd.to_timedelta(
        rng.integers(0, 900, num_rows), "D"
    )
    frame = pd.DataFrame(
        {
            "Customer ID": [f"C{i:05}" for i in range(num_rows)],
            "Älter, in Jahren": np.where(rng.random(num_rows) < 0.1, np.nan, age),
            "spent": spent,
            "since": days.strftime("%d/%m/%Y"),
            "is member": rng.random(num_rows) < 0.5,
            "city": rng.choice(["Köln", "Nîmes", "Łódź", None], num_rows),
            "note": [
                'said "no",\nthen left' if i % 3 else f"fine {i}"
                for i in range(num_rows)
            ],
            "constant": 7,
            "empty": None,
            "part": rng.choice(["a", "b"], num_rows),
        }
    )
    noise = rng.normal(0, 8, num_rows)
    frame["left"] = np.where(spent + age / 2 + noise > 120, "yes", "no")
    return frame


@pytest.fixture(name="csv")
def fixture_csv(tmp_path):
    path = tmp_path / "customers.csv"
    make_frame().to_csv(path, index=False)
    return path


# --- new -------------------------------------------------------------------------


def test_a_csv_becomes_a_task_that_runs_and_passes_its_check(csv, tmp_path, capsys):
    options = Options(task_root=str(tmp_path), csv=str(csv), target="left")
    assert dispatch(["new", "churn"], options)
    spec = read_spec(tmp_path / "churn")
    assert spec.metric.name == "accuracy"
    assert spec.classes == ("no", "yes")
    assert 0.3 < spec.baseline < 1
    assert spec.seed_mean != 0
    assert capsys.readouterr().out.endswith("churn: ok\n")


def test_what_tells_nothing_is_left_out_and_the_rest_is_described(
    csv, tmp_path, capsys
):
    folder = make_task_folder(tmp_path / "churn", csv=csv, target="left")
    task = prepare_task(folder, tmp_path / "data")
    train = pd.read_csv(task.public_dir / "train.csv")
    assert list(train.columns) == [
        "row_id",
        "Älter, in Jahren",
        "spent",
        "since",
        "is member",
        "city",
        "note",
        "part_",
        "left",
    ]
    for text in ("`since`: date", "`note`: text", "`city`: group", "Jahren`: number"):
        assert text in task.description
    assert "day_first = ['since']" in task.starter["train.py"]
    assert "['Customer ID', 'constant', 'empty']" in capsys.readouterr().out
    assert check_grading(task) == []


@pytest.mark.parametrize(
    ("target", "values", "metric", "classes"),
    [
        ("y", np.linspace(0, 1, NUM_ROWS), "rmse", ()),
        ("y", np.arange(NUM_ROWS) % 5, "accuracy", ("0", "1", "2", "3", "4")),
        ("y", np.arange(NUM_ROWS) % 3 + 0.0, "accuracy", ("0", "1", "2")),
        ("y", [f"{i % 2:02}" for i in range(NUM_ROWS)], "accuracy", ("0", "1")),
        ("y", ["TRUE", "false"] * (NUM_ROWS // 2), "accuracy", ("False", "True")),
        ("größe", ["a  b", "ß"] * (NUM_ROWS // 2), "accuracy", ("a b", "ß")),
        ("y", ["x"] * 80 + ["z"] * 10, "f1_macro", ("x", "z")),
        ("y", [f"k{i % 30}" for i in range(NUM_ROWS)], "accuracy", None),
    ],
)
def test_the_metric_fits_the_target(tmp_path, target, values, metric, classes):
    frame = make_frame().drop(columns="left").assign(**{target: values})
    frame.to_csv(tmp_path / "t.csv", index=False)
    folder = make_task_folder(tmp_path / "made", csv=tmp_path / "t.csv", target=target)
    task = prepare_task(folder, tmp_path / "data")
    assert task.metric == metric
    assert classes is None or task.classes == classes
    assert check_grading(task) == []


def test_two_classes_can_be_scored_by_probability(csv, tmp_path):
    folder = make_task_folder(
        tmp_path / "churn", csv=csv, target="left", metric="roc_auc"
    )
    task = prepare_task(folder, tmp_path / "data")
    assert (task.metric, task.classes) == ("roc_auc", ())
    assert "predict_proba(test)[:, 1]" in task.starter["train.py"]
    assert check_grading(task) == []


@pytest.mark.parametrize(
    ("encoding", "separator"), [("cp1252", ";"), ("utf-16", "\t"), ("utf-8-sig", ",")]
)
def test_other_encodings_and_separators_are_read(tmp_path, encoding, separator):
    frame = make_frame().replace(
        {"city": {"Łódź": "Łódź" if "utf" in encoding else "Lille"}}
    )
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False, encoding=encoding, sep=separator)
    folder = make_task_folder(tmp_path / "made", csv=path, target="left")
    train = pd.read_csv(folder / "data.csv")
    assert {"Köln", "Nîmes"} < set(train["city"].dropna())
    assert "Älter, in Jahren" in train.columns


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"target": "leftt"}, r"no such column; did you mean left"),
        ({"id_column": "custmer"}, r"--id=custmer: no such column; did you mean"),
        ({"metric": "acuracy"}, r"did you mean accuracy"),
        ({"metric": "rmse"}, r"metric rmse needs numbers"),
        ({"metric": "mcrmse"}, r"needs numbers"),
        ({"metric": "map_at_5"}, r"one number or one class"),
        ({"target": "Customer ID"}, r"90 different values in 90 rows"),
        ({"target": "empty"}, r"0 rows with a target; expected 40"),
        ({"target": "constant"}, r"1 different values in 90 rows"),
        ({"encoding": "utf-32"}, r"cannot be read as a table"),
        ({"encoding": "klingon"}, r"cannot be read as a table"),
    ],
)
def test_what_cannot_become_a_task_is_refused_with_the_reason(
    csv, tmp_path, changes, match
):
    arguments = {"target": "left", **changes}
    with pytest.raises(TaskError, match=match):
        make_task_folder(tmp_path / "made", csv=csv, **arguments)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "cannot be read as a table"),
        (b"a,b\n1,2,3\n", "more cells than the header"),
        (b"a,b\n" + b"1,2\n" * 50 + b"1,2,3\n", "cannot be read as a table"),
        (b"a,left\n" + b"1,2\n" * 10, "10 rows with a target"),
        (b"a,left\n" + b"1,2\n1,3\n" * 50, "no column to predict 'left' from"),
    ],
)
def test_broken_tables_are_refused(tmp_path, content, match):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(TaskError, match=match):
        make_task_folder(tmp_path / "made", csv=tmp_path / "t.csv", target="left")


def test_names_that_are_taken_or_unfit_are_refused(csv, tmp_path):
    (tmp_path / "made").mkdir()
    with pytest.raises(TaskError, match="exists already"):
        make_task_folder(tmp_path / "made", csv=csv, target="left")
    with pytest.raises(TaskError, match="small letters"):
        make_task_folder(tmp_path / "Ärger", csv=csv, target="left")
    with pytest.raises(TaskError, match="No such file"):
        make_task_folder(tmp_path / "x", csv=tmp_path / "none.csv", target="left")


# --- the other commands ----------------------------------------------------------


def last_record(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_every_task_is_listed_with_its_metric_and_scores(capsys):
    assert dispatch(["list"], OPTIONS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["task", "split", "data"]
    assert len(lines) == 1 + len(list((ROOT / "tasks").glob("*/task.toml")))
    (row,) = [line for line in lines if line.startswith("spaceship-titanic")]
    assert "accuracy (up)" in row
    assert row.endswith("0.79565")


def test_files_are_graded_with_one_record(tmp_path, capsys):
    options = Options(task_root=OPTIONS.task_root, data_dir=str(tmp_path))
    dispatch(["prepare", "spaceship-titanic"], options)
    public = tmp_path / "tasks" / "spaceship-titanic" / "public"
    assert last_record(capsys)["data"] == str(public)
    sample = public / "sample_submission.csv"
    assert dispatch(["grade", "spaceship-titanic", str(sample)], options)
    record = last_record(capsys)
    assert record["valid"]
    assert record["source"] == "lookalike"
    assert 0.4 < record["test"] < 0.6
    broken = tmp_path / "broken.csv"
    broken.write_text("PassengerId,Transported\n")
    assert not dispatch(["grade", "spaceship-titanic", str(broken)], options)
    assert last_record(capsys)["reason"] == "missing_ids"


def test_a_script_runs_in_a_fresh_workspace_with_one_record(tmp_path, capsys):
    script = tmp_path / "mine.py"
    script.write_text(
        "import shutil\nprint('hello')\n"
        "shutil.copy('data/sample_submission.csv', 'submission.csv')\n"
    )
    assert dispatch(["run", "spaceship-titanic", str(script)], OPTIONS)
    record = last_record(capsys)
    assert record["valid"]
    assert record["execution"]["stdout"] == "hello\n"
    script.write_text("print('nothing')\n")
    assert not dispatch(["run", "spaceship-titanic", str(script)], OPTIONS)
    assert last_record(capsys)["reason"] == "missing_file"


def test_an_import_measures_its_baseline_and_scores_stand_among_people(
    tmp_path, capsys
):
    prepared = tmp_path / "lookalike"
    folder = ROOT / "tasks" / "spaceship-titanic"
    task = prepare_task(folder, prepared)
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "train.csv").write_bytes((task.public_dir / "train.csv").read_bytes())
    root = tmp_path / "real"
    options = Options(task_root=OPTIONS.task_root, real_data=str(root), num_seeds=1)
    assert dispatch(["import", "spaceship-titanic", str(raw)], options)
    record = last_record(capsys)
    assert (record["num_train"], record["num_test"]) == (540, 60)
    assert record["published_rows"] == [7823, 870]
    real = load_task(folder, root / "spaceship-titanic")
    assert real.baseline == record["baseline"]["baseline"]
    assert real.human is not None
    labels = pd.read_csv(real.private_dir / "labels.csv").drop(columns="part")
    labels.to_csv(tmp_path / "gold.csv", index=False)
    gold = str(tmp_path / "gold.csv")
    assert dispatch(["grade", "spaceship-titanic", gold], options)
    record = last_record(capsys)
    assert (record["medal"], record["above_median"]) == ("gold", True)


def test_a_download_without_kaggle_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(importing.shutil, "which", lambda name: None)
    options = Options(task_root=OPTIONS.task_root, real_data=str(tmp_path))
    with pytest.raises(TaskError, match=r"kaggle.com/competitions/spaceship-titanic"):
        dispatch(["import", "spaceship-titanic"], options)
    with pytest.raises(TaskError, match=r"cifar-10-binary.tar.gz yourself"):
        dispatch(["import", "cifar-10"], options)
    with pytest.raises(TaskError, match="nothing to import"):
        dispatch(["import", "digits"], options)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "expected one of list, check"),
        (["chek"], "did you mean check"),
        (["check"], "name tasks or give --all"),
        (["check", "digts"], "did you mean digits"),
        (["grade", "digits"], "grade needs a task and a file"),
        (["grade", "digits", "/none.csv"], "No such file"),
        (["prepare", "digits"], "--data_dir"),
        (["new", "x"], "--csv=FILE and --target"),
        (["list", "digits"], "no further words"),
    ],
)
def test_wrong_commands_say_what_is_expected(words, match):
    with pytest.raises(ConfigError, match=match):
        dispatch(words, OPTIONS)


def test_help_names_every_command():
    result = subprocess.run(
        [sys.executable, "-m", "launch.tasks", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    for name in (
        "list",
        "check",
        "measure",
        "prepare",
        "run",
        "grade",
        "import",
        "new",
    ):
        assert f"launch.tasks {name}" in result.stdout
    assert "--target" in result.stdout
