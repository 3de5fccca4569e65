"""Task folders: what is written, what is checked, what leaks nothing."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlagent_jax.config import ModelConfig, RunConfig
from mlagent_jax.env.baseline import Baseline, hash_starter, write_baseline
from mlagent_jax.env.executor import Execution
from mlagent_jax.env.grading import grade, read_labels
from mlagent_jax.env.task import (
    load_task,
    load_tasks,
    prepare_task,
    prepared_dir,
    rebuild_hashes,
    task_folders,
)
from mlagent_jax.env.task_check import check_task
from mlagent_jax.errors import ConfigError, TaskError
from mlagent_jax.types import ExecResult, Outcome

TOML = """\
id = "toy"
version = 1
split = "held_in"
modality = "graph"
title = "Toy"
metric = "rmse"
direction = "min"
id_column = "key"
target_columns = ["y"]
seed = 3

[scores]
baseline = 2.0
seed_mean = 2.0
seed_std = 0.1
best = 0.5
best_from = "by hand"
stderr = 0.1

[limits]
wall_s = 5.0

[source]
data = "generated"
license = "none"
"""
PREPARE = """\
import pandas as pd
from mlagent_jax.env.task import PreparedData


def prepare(rng):
    x = rng.normal(size=60).round(6)
    table = pd.DataFrame({"y": 2 * x, "x": x})
    edges = pd.DataFrame({"a": range(59), "b": range(1, 60)})
    return PreparedData(train=table[:20], test=table[20:], links={"edges.csv": edges})
"""


@pytest.fixture(name="folder")
def fixture_folder(tmp_path):
    folder = tmp_path / "tasks" / "toy"
    folder.mkdir(parents=True)
    (folder / "task.toml").write_text(TOML)
    (folder / "description.md").write_text("Predict y.\n\nMore about y.\n")
    (folder / "train.py").write_text("print('hello')\n")
    (folder / "prepare.py").write_text(PREPARE)
    return folder


@pytest.fixture(name="prepared")
def fixture_prepared(tmp_path):
    return tmp_path / "run" / "tasks" / "toy"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def make_config(folder: Path, **changes) -> RunConfig:
    model = ModelConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
    )
    config = RunConfig(
        name="t", model=model, task_root=str(folder.parent), held_in=("toy",)
    )
    return dataclasses.replace(config, **changes)


# --- preparing -------------------------------------------------------------------


def test_prepared_files_hold_what_the_contract_says(folder, prepared):
    task = prepare_task(folder, prepared)
    train = pd.read_csv(task.public_dir / "train.csv")
    test = pd.read_csv(task.public_dir / "test.csv")
    sample = pd.read_csv(task.public_dir / "sample_submission.csv")
    labels = pd.read_csv(task.private_dir / "labels.csv")
    assert list(train.columns) == ["key", "y", "x"]
    assert list(test.columns) == ["key", "x"]
    assert list(sample.columns) == ["key", "y"]
    assert list(labels.columns) == ["key", "y", "part"]
    assert labels["part"].value_counts().to_dict() == {"selection": 20, "test": 20}
    assert sorted([*train["key"], *test["key"]]) == list(range(60))
    assert task.direction == "min"
    assert task.limits.wall_s == 5.0
    assert task.starter == {"train.py": "print('hello')\n"}


def test_labels_belong_to_their_rows_and_links_to_their_nodes(folder, prepared):
    task = prepare_task(folder, prepared)
    test = pd.read_csv(task.public_dir / "test.csv", index_col="key")
    labels = pd.read_csv(task.private_dir / "labels.csv", index_col="key")
    np.testing.assert_allclose(labels["y"], 2 * test["x"].loc[labels.index])
    # The edges form one path over all rows, as before the renumbering.
    edges = pd.read_csv(task.public_dir / "edges.csv")
    degrees = pd.concat([edges["a"], edges["b"]]).value_counts()
    assert len(edges) == 59
    assert sorted(degrees)[:3] == [1, 1, 2]


def test_neither_ids_nor_row_order_tell_about_labels(folder, prepared):
    edit(
        folder / "prepare.py",
        "x = rng.normal(size=60).round(6)",
        "x = pd.Series(range(60))",
    )
    task = prepare_task(folder, prepared)
    labels = read_labels(task).astype({"key": int})
    assert abs(np.corrcoef(labels["key"], labels["y"])[0, 1]) < 0.5
    assert abs(np.corrcoef(range(len(labels)), labels["y"])[0, 1]) < 0.5


def test_preparing_again_is_the_same_and_changes_nothing(folder, prepared, tmp_path):
    first = prepare_task(folder, prepared)
    stamp = (prepared / "task.json").stat().st_mtime_ns
    assert prepare_task(folder, prepared) == first
    assert (prepared / "task.json").stat().st_mtime_ns == stamp
    other = prepare_task(folder, tmp_path / "elsewhere")
    assert other.file_hashes == first.file_hashes == rebuild_hashes(folder)


def test_an_interrupted_preparation_leaves_nothing_that_counts(
    folder, prepared, monkeypatch
):
    def stop(src, dst):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare_task(folder, prepared)
    assert not prepared.exists()
    prepare_task(folder, prepared)
    assert [p.name for p in prepared.parent.iterdir()] == ["toy"]


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("def prepare", "def repair", r"defines no function prepare"),
        ('"y": 2 * x', '"z": 2 * x', r"test lacks the target columns \['y'\]"),
        ('"x": x}', '"x": x, "part": 0}', r"column names \['part'\] are reserved"),
        ("table[20:]", "table[20:].assign(v=1)", r"lacks the feature columns \['v'\]"),
        ("table[20:]", "table[20:21]", "too few rows"),
        (
            '"y": 2 * x',
            '"y": pd.Series(x).where(x > 0)',
            r"no value in places of \['y'\]",
        ),
        ('"y": 2 * x', '"y": 1e13', "labels are invalid: .* must be in"),
    ],
)
def test_data_that_breaks_the_contract_is_refused(folder, prepared, old, new, match):
    edit(folder / "prepare.py", old, new)
    with pytest.raises(TaskError, match=match):
        prepare_task(folder, prepared)


# --- loading ---------------------------------------------------------------------


def test_a_folder_without_files_names_them(tmp_path):
    with pytest.raises(TaskError, match=r"missing task.toml, description.md, train.py"):
        load_task(tmp_path, tmp_path / "p")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('metric = "rmse"', 'metric = "rmsee"', r"did you mean rmse\?"),
        ('title = "Toy"', 'titel = "Toy"', r"unknown key titel; did you mean title"),
        ('title = "Toy"\n', "", r"missing key title"),
        ("wall_s", "wall_seconds", r"unknown key limits.wall_seconds"),
        ('id = "toy"', 'id = "boy"', r"expected the folder's name 'toy'"),
        ("version = 1", "version = true", r"version = True: expected int"),
        ("seed = 3", "seed = -3", r"seed = -3: expected at least 0"),
        ('split = "held_in"', 'split = "train"', r"split = 'train': expected one of"),
        ("best = 0.5", "best = 2.5", r"best better than baseline \(min\)"),
        ("best = 0.5", 'best = "low"', r"scores.best = 'low': expected float"),
        ('["y"]', "[]", r"target_columns = \[\]: expected at least one"),
        ('["y"]', '["key"]', r"none the id column's"),
        ("seed = 3", "seed = 3\nclasses = [1, 2]", r"expected none for metric rmse"),
        (
            "seed = 3",
            "seed = 3\ntarget_range = [5, 1]",
            r"expected \[lowest, highest\]",
        ),
        ('metric = "rmse"', 'metric = "accuracy"', r"two or more for metric accuracy"),
        ("seed = 3", "seed =", r"toy: Invalid value"),
    ],
)
def test_a_declaration_that_breaks_the_contract_is_refused(
    folder, prepared, old, new, match
):
    edit(folder / "task.toml", old, new)
    with pytest.raises(TaskError, match=match):
        prepare_task(folder, prepared)
    assert not prepared.exists()


def test_all_problems_of_a_folder_are_listed_at_once(folder, prepared):
    edit(folder / "task.toml", 'split = "held_in"', 'split = "train"')
    edit(folder / "task.toml", "version = 1", "version = 0")
    (folder / "description.md").write_text("word " * 30)
    with pytest.raises(TaskError) as caught:
        prepare_task(folder, prepared)
    for part in ("split = ", "version = ", "first line has 30 words"):
        assert part in str(caught.value)


def test_data_must_be_prepared_before_it_is_loaded(folder, prepared):
    with pytest.raises(TaskError, match=r"run launch.prepare first"):
        load_task(folder, prepared)


def test_changed_and_missing_files_are_all_named(folder, prepared):
    task = prepare_task(folder, prepared)
    (task.private_dir / "labels.csv").write_text("key,y,part\n")
    (task.public_dir / "test.csv").unlink()
    with pytest.raises(TaskError) as caught:
        load_task(folder, prepared)
    assert "labels.csv: changed since it was prepared" in str(caught.value)
    assert "test.csv: missing" in str(caught.value)


def test_data_of_another_version_is_refused(folder, prepared):
    prepare_task(folder, prepared)
    edit(folder / "prepare.py", "size=60", "size=80")
    with pytest.raises(TaskError, match=r"made from another version of task toy"):
        prepare_task(folder, prepared)


def test_a_changed_starter_or_score_needs_no_new_data(folder, prepared):
    prepare_task(folder, prepared)
    (folder / "train.py").write_text("print('other')\n")
    edit(folder / "task.toml", "best = 0.5", "best = 0.4")
    assert load_task(folder, prepared).best == 0.4


def test_a_damaged_record_or_foreign_folder_is_refused(folder, prepared):
    prepare_task(folder, prepared)
    (prepared / "task.json").write_text('{"files": ')
    with pytest.raises(TaskError, match=r"task.json is damaged"):
        load_task(folder, prepared)
    (prepared / "task.json").unlink()
    with pytest.raises(TaskError, match=r"has no task.json; move the folder away"):
        prepare_task(folder, prepared)


def test_a_run_gets_its_tasks_or_the_nearest_name(folder, tmp_path):
    workdir = tmp_path / "run"
    config = make_config(folder)
    prepare_task(folder, prepared_dir(config, workdir, folder))
    assert list(load_tasks(config, workdir)) == ["toy"]
    wrong = make_config(folder, held_in=("tay",))
    with pytest.raises(ConfigError, match=r"no task 'tay' in .*did you mean toy"):
        task_folders(wrong)
    swapped = make_config(folder, held_in=(), held_out=("toy",))
    with pytest.raises(TaskError, match=r"is held_in, but config.held_out names it"):
        load_tasks(swapped, workdir)


def test_problems_of_all_tasks_of_a_run_are_listed(folder, tmp_path):
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    edit(other / "task.toml", 'id = "toy"', 'id = "other"')
    config = make_config(folder, held_in=("toy", "other"))
    with pytest.raises(TaskError, match=r"toy: no prepared data(.|\n)*other: no prepa"):
        load_tasks(config, tmp_path / "run")


# --- the self-test ---------------------------------------------------------------


class FixedRunner:
    """Every script writes the same submission."""

    def __init__(self, submission: bytes | None) -> None:
        self.submission = submission

    def run(self, task_id, files, script) -> Execution:
        result = ExecResult(
            outcome=Outcome.INFO,
            exit_code=0,
            signal=None,
            wall_s=0.0,
            cpu_s=0.0,
            max_rss_bytes=0,
            stdout="",
            stderr="",
            stdout_bytes=0,
            stderr_bytes=0,
        )
        return Execution(result=result, files={}, submission=self.submission)


def submission_with_score(task, score: float) -> bytes:
    labels = read_labels(task).drop(columns="part")
    return labels.assign(y=labels["y"] + score).to_csv(index=False).encode()


def test_the_self_test_passes_a_right_task(folder, prepared):
    task = prepare_task(folder, prepared)
    submission = submission_with_score(task, 2.0)
    assert grade(task, submission, "test") == pytest.approx(2.0)
    assert check_task(folder, task, FixedRunner(submission)) == []


def test_the_self_test_finds_a_wrong_baseline_and_random_data(folder, prepared):
    task = prepare_task(folder, prepared)
    runner = FixedRunner(submission_with_score(task, 5.0))
    assert check_task(folder, task, runner) == [
        "the starter scores 5, task.toml says 2"
    ]
    assert check_task(folder, task, FixedRunner(None)) == [
        "train.py writes no valid submission"
    ]
    hashes = task.file_hashes | {"public/train.csv": "0"}
    other = dataclasses.replace(task, file_hashes=hashes)
    assert "prepare.py gives other files" in check_task(folder, other, runner)[0]


def test_the_record_of_prepared_data_holds_hashes(folder, prepared):
    task = prepare_task(folder, prepared)
    record = json.loads((prepared / "task.json").read_text())
    assert record["files"] == task.file_hashes
    assert record["id"] == "toy"


# --- archives --------------------------------------------------------------------

ARCHIVE_PREPARE = """\
import pandas as pd
from mlagent_jax.env.archive import find_file
from mlagent_jax.env.task_data import PreparedFiles, csv_bytes, hold_out, split_parts

FRAC = {"real": 0.2, "lookalike": 0.5}


def write_archive(raw, rng):
    x = rng.normal(size=60).round(6)
    table = pd.DataFrame({"key": range(60), "y": 2 * x, "x": x})
    table.to_csv(raw / "all.csv", index=False)


def from_archive(raw, source, rng):
    train, test = hold_out(pd.read_csv(find_file(raw, "all.csv")), FRAC[source])
    labels = test[["key", "y"]].assign(part=split_parts(test["key"] // 2, rng))
    public = {"train.csv": csv_bytes(train), "sub/test.csv": csv_bytes(test[["key"]])}
    public["notes.txt"] = find_file(raw, "all.csv")
    return PreparedFiles(public=public, labels=labels, num_train=len(train))
"""
REAL = """
[rows]
train = 30
test = 30

[real]
kaggle = "toy"
license = "none"
split = "half"
best = 0.1
best_from = "by hand"

[real.limits]
wall_s = 7.0

[real.human]
gold = 0.1
silver = 0.2
bronze = 0.3
median = 0.5
num_teams = 10
medals = true
medals_note = ""
from = "by hand"
"""


@pytest.fixture(name="archived")
def fixture_archived(folder):
    (folder / "prepare.py").write_text(ARCHIVE_PREPARE)
    (folder / "task.toml").write_text(TOML + REAL)
    return folder


@pytest.fixture(name="archive")
def fixture_archive(tmp_path):
    raw = tmp_path / "download"
    raw.mkdir()
    table = pd.DataFrame({"key": range(100), "y": range(100), "x": range(100)})
    table.to_csv(raw / "all.csv", index=False)
    return raw


def test_a_lookalike_goes_through_the_import_and_real_data_is_marked(
    archived, archive, tmp_path
):
    made = prepare_task(archived, tmp_path / "made")
    assert (made.source, made.human, made.best) == ("lookalike", None, 0.5)
    assert made.limits.wall_s == 5.0
    assert rebuild_hashes(archived) == made.file_hashes
    assert (made.public_dir / "sub" / "test.csv").is_file()
    real = prepare_task(archived, tmp_path / "real", archive)
    assert (real.source, real.best, real.limits.wall_s) == ("real", 0.1, 7.0)
    assert real.human is not None
    assert math.isnan(real.baseline)
    assert len(pd.read_csv(real.public_dir / "train.csv")) == 80
    parts = read_labels(real).astype({"key": int})
    groups = parts.groupby(parts["key"] // 2)["part"].nunique()
    assert set(groups) == {1}


def test_real_data_needs_the_baseline_of_this_starter(archived, archive, tmp_path):
    real = prepare_task(archived, tmp_path / "real", archive)
    with pytest.raises(TaskError, match="baseline of toy is not measured"):
        load_task(archived, tmp_path / "real")
    measured = Baseline(
        baseline=3.0,
        seed_mean=3.0,
        seed_std=0.5,
        num_seeds=2,
        stderr=0.1,
        wall_s=1.0,
        hardware="any",
        starter_hash=hash_starter(real.starter),
    )
    write_baseline(tmp_path / "real", measured)
    task = load_task(archived, tmp_path / "real")
    assert (task.baseline, task.baseline_std) == (3.0, 0.5)
    (archived / "train.py").write_text("print('other')\n")
    with pytest.raises(TaskError, match="baseline of toy is not measured"):
        load_task(archived, tmp_path / "real")
    (tmp_path / "real" / "baseline.json").write_text("{")
    with pytest.raises(TaskError, match="baseline.json is damaged"):
        load_task(archived, tmp_path / "real")


def test_a_run_uses_real_data_where_the_config_names_it(archived, archive, tmp_path):
    config = make_config(archived, real_data=str(tmp_path / "real"))
    where = tmp_path / "real" / "toy"
    assert prepared_dir(config, tmp_path, archived) == where
    with pytest.raises(TaskError, match="launch.tasks import toy <archive>"):
        load_tasks(config, tmp_path)
    without = make_config(archived)
    assert prepared_dir(without, tmp_path, archived) == tmp_path / "tasks" / "toy"


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("def write_archive", "def make", r"no function write_archive\(raw, rng\)"),
        ("num_train=len(train)", "num_train=0", "no training examples"),
        ("assign(part=", "assign(y=1, key=1, part=", "labels name some id twice"),
        ('"sub/test.csv"', '"../test.csv"', r"leave the folder"),
        ('["key", "y"]]', '["key"]]', r"labels lack the columns \['y'\]"),
        ("rng))", 'rng)).assign(part="hidden")', "expected .*selection"),
        (
            '"lookalike": 0.5',
            '"lookalike": 0.4',
            r"rows are \(36, 24\); task.toml says",
        ),
    ],
)
def test_archive_tasks_that_break_the_contract_are_refused(
    archived, prepared, old, new, match
):
    edit(archived / "prepare.py", old, new)
    with pytest.raises(TaskError, match=match):
        prepare_task(archived, prepared)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('kaggle = "toy"\n', "", "one of the keys kaggle, url"),
        ("gold = 0.1\n", "", "missing key real.human.gold"),
        ("medals = true", "medals = false", "medals_note exactly where"),
        ("median = 0.5", 'median = "half"', "real.human.median = 'half'"),
        ('direction = "min"', 'direction = "max"', "expected 'min' for metric rmse"),
    ],
)
def test_declarations_of_real_data_are_checked(archived, prepared, old, new, match):
    edit(archived / "task.toml", old, new)
    with pytest.raises(TaskError, match=match):
        prepare_task(archived, prepared)


def test_an_archive_for_a_task_without_one_is_refused(folder, prepared, archive):
    with pytest.raises(TaskError, match="no table .real., so no archive fits it"):
        prepare_task(folder, prepared, archive)


def test_the_self_test_finds_changes_of_real_data(archived, archive, tmp_path):
    task = prepare_task(archived, tmp_path / "real", archive)
    runner = FixedRunner(submission_with_score(task, 2.0))
    task = dataclasses.replace(task, baseline=2.0, baseline_std=0.1)
    assert check_task(archived, task, runner) == []
    other = dataclasses.replace(task, baseline=9.0)
    assert check_task(archived, other, runner) == [
        "the starter scores 2, its measurement says 9"
    ]
    with (task.public_dir / "notes.txt").open("a") as file:
        file.write("changed")
    problems = check_task(archived, task, runner)
    assert [p for p in problems if "notes.txt changed since it was imported" in p]
