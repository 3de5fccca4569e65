"""The paper's tasks: archives, what stays hidden, what is declared."""

import importlib.util
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from launch.tasks.importing import import_task
from mlagent_jax.env import grading
from mlagent_jax.env.task import load_task, prepare_task
from mlagent_jax.env.task_check import check_grading
from mlagent_jax.env.task_folder import read_spec
from mlagent_jax.errors import TaskError

ROOT = Path(__file__).parent.parent.parent / "tasks"
FOLDERS = sorted(
    path.parent
    for path in ROOT.glob("*/task.toml")
    if read_spec(path.parent).real is not None
)
NAMES = [folder.name for folder in FOLDERS]
HELD_IN = {
    "aerial-cactus-identification",
    "cifar-10",
    "dogs-vs-cats-redux-kernels-edition",
    "feedback-prize-english-language-learning",
    "home-data-for-ml-course",
    "nomad2018-predict-transparent-conductors",
    "ogbn-arxiv",
    "plant-pathology-2020-fgvc7",
    "spaceship-titanic",
}


@pytest.fixture(name="prepared", scope="module")
def fixture_prepared(tmp_path_factory):
    return tmp_path_factory.mktemp("paper")


def write_zip(folder: Path, path: Path) -> None:
    """Writes what prepare.py makes up as an archive that a user could have."""
    spec = importlib.util.spec_from_file_location("prepare", folder / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    raw = path.with_suffix("")
    raw.mkdir()
    module.write_archive(raw, np.random.default_rng(read_spec(folder).seed))
    shutil.make_archive(str(raw), "zip", raw)


def test_the_nine_held_in_tasks_of_the_paper_are_there():
    found = {f.name for f in FOLDERS if read_spec(f).split == "held_in"}
    assert found == HELD_IN


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_real_data_is_declared_with_where_it_comes_from(folder):
    spec = read_spec(folder)
    assert spec.real is not None
    assert spec.real.best_from
    assert spec.real.license
    assert spec.real.num_train is not None
    sign = 1 if spec.metric.direction == "max" else -1
    human = spec.real.human
    if human is not None:
        ranks = [human.gold, human.silver, human.bronze, human.median]
        assert [sign * x for x in ranks] == sorted([sign * x for x in ranks])[::-1]
        assert sign * spec.real.best >= sign * human.gold
        assert human.provenance


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_lookalikes_grade_as_declared_and_hide_their_labels(folder, prepared):
    task = prepare_task(folder, prepared / folder.name)
    assert task.source == "lookalike"
    assert check_grading(task) == []
    assert task.human is None
    labels = grading.read_labels(task)
    for name in task.file_hashes:
        if not name.startswith("public/") or not name.endswith(".csv"):
            continue
        table = pd.read_csv(prepared / folder.name / name, dtype=str)
        if name == f"public/{task.sample_file}" or task.id_column not in table.columns:
            continue
        known = table.merge(labels.astype(str), on=task.id_column)
        if known.empty or not set(task.target_columns) <= set(table.columns):
            continue
        # Numbers of visible and hidden rows may both start at 1 (nomad2018); then the
        # rows are others, and so are their answers.
        assert task.id_column == "id", name
        for column in task.target_columns:
            assert (known[f"{column}_x"] == known[f"{column}_y"]).mean() < 0.5, name


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_a_users_archive_becomes_real_data(folder, tmp_path):
    write_zip(folder, tmp_path / "kaggle.zip")
    root = tmp_path / "real"
    task, record = import_task(folder, tmp_path / "kaggle.zip", root)
    assert task.source == "real"
    assert check_grading(task) == []
    assert record["num_train"] > 0
    published = read_spec(folder).real
    assert published is not None
    made = (record["num_train"], record["num_test"])
    is_same = made == (published.num_train, published.num_test)
    assert record["matches_published_rows"] == is_same
    hashes = json.loads((root / f"{task.id}.archive.json").read_text())
    assert list(hashes) == ["kaggle.zip"]
    with pytest.raises(TaskError, match="baseline of .* is not measured"):
        load_task(folder, root / task.id)
    with (tmp_path / "other.zip").open("wb") as file:
        file.write((tmp_path / "kaggle.zip").read_bytes() + b"\0")
    with pytest.raises(TaskError, match="is not the archive that was imported first"):
        import_task(folder, tmp_path / "other.zip", root)


def test_an_archive_without_the_expected_files_is_refused_and_forgotten(tmp_path):
    folder = ROOT / "spaceship-titanic"
    with zipfile.ZipFile(tmp_path / "wrong.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(TaskError, match=r"no file 'train.csv'; it has readme.txt"):
        import_task(folder, tmp_path / "wrong.zip", tmp_path / "real")
    assert not list((tmp_path / "real").iterdir())


def test_names_of_images_do_not_tell_where_they_were(prepared):
    folder = ROOT / "plant-pathology-2020-fgvc7"
    task = prepare_task(folder, prepared / folder.name)
    train = pd.read_csv(task.public_dir / "train.csv")
    numbers = train["image_id"].str.removeprefix("Train_").astype(int)
    assert sorted(numbers) == list(range(len(train)))


def test_cats_and_dogs_come_in_zips_with_numbers_of_their_own(prepared):
    folder = ROOT / "dogs-vs-cats-redux-kernels-edition"
    task = prepare_task(folder, prepared / folder.name)
    data = io.BytesIO((task.public_dir / "test.zip").read_bytes())
    names = zipfile.ZipFile(data).namelist()
    ids = set(grading.read_labels(task)["id"])
    assert {name.removeprefix("test/").removesuffix(".jpg") for name in names} == ids
