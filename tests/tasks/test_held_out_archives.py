"""Importing archives as Kaggle ships them: the ten held-out tasks of the paper.

Each archive is made here by hand, tiny and zipped the way Kaggle zips it, so that what
prepare.py writes for itself does not vouch for what it reads.
"""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import model_selection

from mlagent_jax.env import grading
from mlagent_jax.env.media import png_bytes, zip_bytes
from mlagent_jax.env.task import prepare_task
from mlagent_jax.env.task_folder import read_spec
from mlagent_jax.errors import SubmissionError
from mlagent_jax.types import Task

ROOT = Path(__file__).parent.parent.parent / "tasks"
RNG = np.random.default_rng(5)
HELD_OUT = {
    "denoising-dirty-documents",
    "detecting-insults-in-social-commentary",
    "jigsaw-toxic-comment-classification-challenge",
    "leaf-classification",
    "learning-agency-lab-automated-essay-scoring-2",
    "spooky-author-identification",
    "statoil-iceberg-classifier-challenge",
    "tabular-playground-series-dec-2021",
    "us-patent-phrase-to-phrase-matching",
    "whale-categorization-playground",
}


def to_csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False).encode()


def zipped(name: str, table: pd.DataFrame) -> dict[str, bytes]:
    """Returns `<name>.zip` with the table in it, as Kaggle packs single files."""
    return {f"{name}.zip": zip_bytes({name: to_csv(table)})}


def import_task(tmp_path: Path, name: str, files: dict[str, bytes]) -> Task:
    archive = tmp_path / f"{name}.zip"
    archive.write_bytes(zip_bytes(files))
    return prepare_task(ROOT / name, tmp_path / "prepared", archive)


def held_out_rows(num: int, test_frac: float) -> tuple[list[int], list[int]]:
    """Returns positions of (train, test) rows by MLE-bench's rule."""
    rows = list(range(num))
    train, test = model_selection.train_test_split(
        rows, test_size=test_frac, random_state=0
    )
    return train, test


def read_table(task: Task, name: str) -> pd.DataFrame:
    return pd.read_csv(task.public_dir / name)


def pixel(path: Path) -> int:
    """Returns the value of an image of one colour."""
    with Image.open(path) as image:
        return int(np.asarray(image).ravel()[0])


def score(task: Task, table: pd.DataFrame) -> dict[str, float]:
    data = to_csv(table)
    return {part: grading.grade(task, data, part) for part in ("selection", "test")}


def test_the_ten_held_out_tasks_of_the_paper_are_there():
    specs = [read_spec(path.parent) for path in sorted(ROOT.glob("*/task.toml"))]
    found = {s.id for s in specs if s.real is not None and s.split == "held_out"}
    assert found == HELD_OUT
    # On the new split an untuned model passes Kaggle's gold line.
    without_medals = {
        s.id for s in specs if s.real and s.real.human and not s.real.human.medals
    }
    assert "tabular-playground-series-dec-2021" in without_medals


def test_pages_keep_mle_benchs_split_and_pixels_their_ids(tmp_path):
    # File names sort as text: 10.png comes before 2.png.
    names = sorted(f"{number}.png" for number in range(1, 16))
    dirty = {n: png_bytes(np.full((2, 3), 10 + i)) for i, n in enumerate(names)}
    clean = {n: png_bytes(np.full((2, 3), 200 + i)) for i, n in enumerate(names)}
    task = import_task(
        tmp_path,
        "denoising-dirty-documents",
        {
            "train.zip": zip_bytes({f"train/{n}": d for n, d in dirty.items()}),
            "train_cleaned.zip": zip_bytes(
                {f"train_cleaned/{n}": d for n, d in clean.items()}
            ),
            "test.zip": zip_bytes({"test/99.png": png_bytes(np.zeros((2, 3)))}),
            **zipped("sampleSubmission.csv", pd.DataFrame({"id": ["99_1_1"]})),
        },
    )
    train, test = held_out_rows(15, 0.2)
    public = task.public_dir
    shown = {pixel(p) - 10: p.name for p in (public / "train").iterdir()}
    hidden = {pixel(p) - 10: p.stem for p in (public / "test").iterdir()}
    assert sorted(shown) == sorted(train)
    assert sorted(hidden) == sorted(test)
    for row, name in shown.items():
        assert pixel(public / "train_cleaned" / name) == 200 + row
    assert len(list((public / "train_cleaned").iterdir())) == len(train)
    labels = pd.read_csv(task.private_dir / "labels.csv")
    for row, page in hidden.items():
        rows = labels[labels["id"].str.startswith(f"{page}_")]
        expected = [f"{page}_{i}_{j}" for i in (1, 2) for j in (1, 2, 3)]
        assert rows["id"].tolist() == expected
        assert rows["value"].to_numpy() == pytest.approx((200 + row) / 255)
        assert rows["part"].nunique() == 1
    assert read_table(task, "sampleSubmission.csv")["id"].tolist() == list(labels["id"])
    beyond = labels.assign(value=labels["value"] + 0.5).drop(columns="part")
    assert beyond["value"].max() > 1  # Only costs, as on Kaggle.
    assert score(task, beyond) == pytest.approx({"selection": 0.5, "test": 0.5})


def test_leaves_keep_their_99_species_and_pictures(tmp_path):
    species = read_spec(ROOT / "leaf-classification").target_columns
    num = 40
    table = pd.DataFrame({"id": 3 * np.arange(num) + 2, "species": species[:num]})
    table = table.assign(margin1=np.arange(num) / 64, shape1=0.5, texture1=0.0)
    images = {
        f"images/{i}.jpg": png_bytes(np.full((8, 8), row))
        for row, i in enumerate(table["id"])
    }
    task = import_task(
        tmp_path,
        "leaf-classification",
        {
            **zipped("train.csv", table),
            **zipped("test.csv", table.head(2).drop(columns="species")),
            "images.zip": zip_bytes(images),
        },
    )
    _, test = held_out_rows(num, 0.1)
    assert len(set(species)) == 99
    hidden = read_table(task, "test.csv")
    assert (hidden["margin1"] * 64).astype(int).tolist() == test
    assert "species" not in hidden
    for table in (read_table(task, "train.csv"), hidden):
        for number, margin in zip(table["id"], table["margin1"], strict=True):
            assert pixel(task.public_dir / f"images/{number}.jpg") == round(64 * margin)
    labels = pd.read_csv(task.private_dir / "labels.csv").set_index("id")
    named = labels[list(species)].idxmax(axis=1).loc[hidden["id"]]
    assert named.tolist() == [species[row] for row in test]


def test_radar_records_keep_missing_angles_as_text(tmp_path):
    rows = [
        {
            "id": f"{number:08x}",
            "band_1": [float(number), -20.5],
            "band_2": [-27.25, -28.0],
            "inc_angle": "na" if number % 4 == 0 else 30.0 + number,
            "is_iceberg": number % 2,
        }
        for number in range(40)
    ]
    unlabeled = [{k: v for k, v in rows[0].items() if k != "is_iceberg"}]
    task = import_task(
        tmp_path,
        "statoil-iceberg-classifier-challenge",
        {
            "data/processed/train.json": json.dumps(rows).encode(),
            "data/processed/test.json": json.dumps(unlabeled).encode(),
        },
    )
    train, test = held_out_rows(40, 0.2)
    shown = json.loads((task.public_dir / "train.json").read_text())
    hidden = json.loads((task.public_dir / "test.json").read_text())
    assert [row["band_1"][0] for row in shown] == train
    assert [row["band_1"][0] for row in hidden] == test
    assert all("is_iceberg" not in row for row in hidden)
    angles = {row["band_1"][0]: row["inc_angle"] for row in shown + hidden}
    assert {n for n, angle in angles.items() if angle == "na"} == set(range(0, 40, 4))
    labels = pd.read_csv(task.private_dir / "labels.csv").set_index("id")["is_iceberg"]
    assert [labels[row["id"]] for row in hidden] == [row % 2 for row in test]


def test_whales_seen_in_hidden_photos_only_are_new(tmp_path):
    # Whale 0 on five photos, ten on two, twenty on one, in random order.
    whales = [0] * 5 + [w for w in range(1, 11) for _ in range(2)]
    whales += [*range(11, 31), 31, 31]
    ids = ["new_whale" if w == 31 else f"w_{w:07x}" for w in whales]
    table = pd.DataFrame(
        {"Image": [f"{i:08x}.jpg" for i in range(len(ids))], "Id": ids}
    )
    table = table.sample(frac=1, random_state=1, ignore_index=True)
    photos = {
        f"train/{name}": png_bytes(np.full((8, 8), row))
        for row, name in enumerate(table["Image"])
    }
    task = import_task(
        tmp_path,
        "whale-categorization-playground",
        {
            "train.csv": to_csv(table),
            "train.zip": zip_bytes(photos),
            "test.zip": zip_bytes({"test/ffffffff.jpg": png_bytes(np.zeros((8, 8)))}),
        },
    )
    rng = np.random.default_rng(0)
    expected: set[int] = set()
    rest: list[int] = []
    for whale in dict.fromkeys(table["Id"]):
        rows = table.index[table["Id"] == whale]
        if len(rows) == 1:
            is_test = rng.choice(["train", "test"], replace=False, p=[0.9, 0.1])
            expected |= set(rows) if is_test == "test" else set()
            continue
        kept, hidden = pd.Series(rows).sample(2, random_state=0)
        expected.add(hidden)
        rest += [row for row in rows if row not in {kept, hidden}]
    rest.sort()
    expected |= {rest[i] for i in held_out_rows(len(rest), 0.1)[1]}
    shown, hidden = task.public_dir / "train", task.public_dir / "test"
    assert {pixel(path) for path in hidden.iterdir()} == expected
    assert {pixel(path) for path in shown.iterdir()} == {*table.index} - expected
    train = read_table(task, "train.csv").set_index("Image")["Id"]
    labels = pd.read_csv(task.private_dir / "labels.csv").set_index("Image")["Id"]
    for name in train.index:
        assert train[name] == table["Id"][pixel(shown / name)]
    for name in labels.index:
        whale = table["Id"][pixel(hidden / name)]
        is_known = whale in set(train)
        assert labels[name] == (whale if is_known else "new_whale")
    assert not set(labels) <= set(train) - {"new_whale"}
    assert set(task.classes) == {*train, "new_whale"}


def test_essays_have_integer_scores_only(tmp_path):
    table = pd.DataFrame(
        {
            "essay_id": [f"{i:07x}" for i in range(60)],
            "full_text": [f'Essay {i}, "quoted"\n\nand more.' for i in range(60)],
            "score": 1 + np.arange(60) % 6,
        }
    )
    name = "learning-agency-lab-automated-essay-scoring-2"
    task = import_task(tmp_path, name, {"train.csv": to_csv(table)})
    train, test = held_out_rows(60, 0.1)
    texts = table["full_text"]
    assert read_table(task, "train.csv")["full_text"].tolist() == list(texts[train])
    hidden = read_table(task, "test.csv")
    assert hidden["full_text"].tolist() == list(texts[test])
    gold = hidden[["essay_id"]].assign(score=table["score"][test].to_numpy())
    assert score(task, gold.astype({"score": float})) == {"selection": 1.0, "test": 1.0}
    with pytest.raises(SubmissionError, match="score") as error:
        score(task, gold.assign(score=gold["score"] + 0.5))
    assert error.value.reason == "unknown_class"


def test_comments_are_their_own_keys(tmp_path):
    comments = [f'"you\\xa0said ""{i}"",\\n ok"' for i in range(30)]
    test = pd.DataFrame(
        {
            "Insult": np.arange(30) % 2,
            "Date": ["20120618192155Z", None, "20120528192215Z"] * 10,
            "Comment": comments,
            "Usage": ["PublicTest", "PrivateTest"] * 15,
        }
    )
    train = test.drop(columns="Usage").assign(Comment=[f"t{i}" for i in range(30)])
    again = test.iloc[[4]].assign(Insult=1)
    leaked = test.iloc[[0]].assign(Comment="t3")
    solution = pd.concat([test, again, leaked])
    task = import_task(
        tmp_path,
        "detecting-insults-in-social-commentary",
        {
            "train.csv": to_csv(train),
            "test.csv": to_csv(solution.drop(columns=["Insult", "Usage"])),
            "test_with_solutions.csv": to_csv(solution),
        },
    )
    hidden = read_table(task, "test.csv")
    assert list(hidden.columns) == ["Date", "Comment"]
    assert sorted(hidden["Comment"]) == sorted(comments)
    assert hidden["Date"].isna().sum() == 10
    sample = read_table(task, "sample_submission_null.csv")
    assert list(sample.columns) == ["Insult", "Date", "Comment"]
    gold = sample.merge(test.drop(columns=["Date", "Usage"]), on="Comment")
    gold = gold.drop(columns="Insult_x").rename(columns={"Insult_y": "Insult"})
    perfect = {"selection": 1.0, "test": 1.0}
    assert score(task, gold.sample(frac=1, random_state=0)) == perfect
    assert score(task, gold.drop(columns="Date")) == perfect


def test_sentences_name_one_author_and_rows_are_rescaled(tmp_path):
    table = pd.DataFrame(
        {
            "id": [f"id{i:05d}" for i in range(60)],
            "text": [f"Sentence {i}; it was dark." for i in range(60)],
            "author": ["EAP", "HPL", "MWS"] * 20,
        }
    )
    name = "spooky-author-identification"
    task = import_task(tmp_path, name, zipped("train.csv", table))
    _, test = held_out_rows(60, 0.1)
    hidden = read_table(task, "test.csv")
    assert hidden["text"].tolist() == [f"Sentence {i}; it was dark." for i in test]
    labels = pd.read_csv(task.private_dir / "labels.csv").set_index("id")
    labels = labels.loc[hidden["id"], ["EAP", "HPL", "MWS"]]
    assert (labels.sum(axis=1) == 1).all()
    assert labels.idxmax(axis=1).tolist() == table["author"][test].tolist()
    guess = labels.reset_index().replace({0.0: 0.2, 1.0: 0.6})
    expected = {"selection": -math.log(0.6), "test": -math.log(0.6)}
    assert score(task, guess) == pytest.approx(expected)
    doubled = guess.set_index("id").mul(0.5).reset_index()
    assert score(task, doubled) == pytest.approx(expected)


def test_comments_without_labels_are_submitted_but_not_scored(tmp_path):
    columns = read_spec(ROOT / "jigsaw-toxic-comment-classification-challenge")
    names = list(columns.target_columns)
    assert names == [
        *("toxic", "severe_toxic", "obscene"),
        *("threat", "insult", "identity_hate"),
    ]
    test = pd.DataFrame({"id": [f"{i:016x}" for i in range(100)]})
    solution = test.assign(**{n: RNG.integers(0, 2, 100) for n in names})
    solution.loc[60:, names] = -1
    test["comment_text"] = [f"Comment\n\n{i}" for i in range(100)]
    train = test.head(50).assign(id=[f"{i:015x}f" for i in range(50)])
    train = train.assign(**dict.fromkeys(names, 0))
    task = import_task(
        tmp_path,
        "jigsaw-toxic-comment-classification-challenge",
        {
            **zipped("train.csv", train),
            **zipped("test.csv", test),
            **zipped("test_labels.csv", solution.sample(frac=1, random_state=0)),
            **zipped("sample_submission.csv", solution),
        },
    )
    hidden = read_table(task, "test.csv")
    assert sorted(hidden["comment_text"]) == sorted(test["comment_text"])
    labels = pd.read_csv(task.private_dir / "labels.csv").set_index("id")
    number = hidden.set_index("id")["comment_text"].str[9:].astype(int)
    scored = labels[labels["part"] != "unscored"]
    assert sorted(number[scored.index]) == list(range(60))
    assert (
        scored[names].to_numpy() == solution.loc[number[scored.index], names].to_numpy()
    ).all()
    gold = labels[names].reset_index()
    perfect = {"selection": 1.0, "test": 1.0}
    assert score(task, gold[gold.columns[::-1]]) == perfect
    is_scored = gold["id"].isin(scored.index).to_numpy()
    changed = gold.astype(dict.fromkeys(names, float))
    changed.loc[~is_scored, names] = 0.7
    assert score(task, changed) == perfect
    # Only the order of scores counts, as on Kaggle.
    assert score(task, changed.set_index("id").mul(9).sub(5).reset_index()) == perfect
    with pytest.raises(SubmissionError, match="missing"):
        score(task, gold[is_scored])


def test_phrases_are_split_by_row(tmp_path):
    table = pd.DataFrame(
        {
            "id": [f"{i:016x}" for i in range(80)],
            "anchor": [f"anchor {i % 4}" for i in range(80)],
            "target": [f"target {i}" for i in range(80)],
            "context": ["A47", "H01"] * 40,
            "score": np.arange(80) % 5 / 4,
        }
    )
    words = ["null", "NA", *[f"target {i}" for i in range(2, 80)]]
    table["target"] = words  # words that pandas takes for gaps unless it is told
    name = "us-patent-phrase-to-phrase-matching"
    task = import_task(tmp_path, name, {"train.csv": to_csv(table)})
    train, test = held_out_rows(80, 0.1)
    shown, hidden = [
        pd.read_csv(task.public_dir / f"{side}.csv", keep_default_na=False)
        for side in ("train", "test")
    ]
    assert shown["target"].tolist() == [words[i] for i in train]
    assert shown["score"].tolist() == table["score"][train].tolist()
    assert hidden["target"].tolist() == [words[i] for i in test]
    assert list(hidden.columns) == ["id", "anchor", "target", "context"]


def test_a_cover_type_may_have_a_single_row(tmp_path):
    cover = np.where(np.arange(100) % 2, 1, 2)
    cover[7] = 5
    table = pd.DataFrame({"Id": np.arange(100), "Elevation": np.arange(100)})
    table = table.assign(Soil_Type7=0, Cover_Type=cover)
    name = "tabular-playground-series-dec-2021"
    task = import_task(tmp_path, name, {"train.csv": to_csv(table)})
    train, test = held_out_rows(100, 0.1)
    shown, hidden = read_table(task, "train.csv"), read_table(task, "test.csv")
    assert shown["Elevation"].tolist() == train
    assert hidden["Elevation"].tolist() == test
    assert "Cover_Type" not in hidden
    assert task.classes == ("1", "2", "3", "4", "5", "6", "7")
    labels = pd.read_csv(task.private_dir / "labels.csv").set_index("Id")["Cover_Type"]
    assert labels.loc[hidden["Id"]].tolist() == cover[test].tolist()


def by_pairs(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Returns how often a positive outranks a negative, ties counting half."""
    difference = predicted[truth == 1][:, None] - predicted[truth == 0]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def kappa(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Returns 1 - mean squared error / that of the same marks in random pairs."""
    chance = np.mean((truth[:, None] - predicted) ** 2)
    return 1 - float(np.mean((truth - predicted) ** 2) / chance)


def reciprocal_rank(truth: np.ndarray, predicted: np.ndarray) -> float:
    ranks = [
        r.split().index(t) if t in r else math.inf
        for t, r in zip(truth, predicted, strict=True)
    ]
    return float(np.mean([1 / (1 + rank) for rank in ranks]))


NUM = 300
PICKED = RNG.integers(0, 3, NUM)
ONE_HOT = np.eye(3)[PICKED]
CHANCES = RNG.dirichlet(np.ones(3), NUM)
BITS = RNG.integers(0, 2, (NUM, 6))
SHARES = RNG.integers(0, 20, (NUM, 6)) / 20  # with ties
MARKS, GUESSES = RNG.integers(1, 7, (2, NUM))
GREYS, CLEANED = RNG.random((2, NUM))
NAMES = np.array([f"w_{n}" for n in range(9)])
LABELS = NAMES[RNG.integers(0, 9, NUM)]
RANKINGS = np.array([" ".join(RNG.permutation(NAMES)[:5]) for _ in range(NUM)])


@pytest.mark.parametrize(
    ("name", "truth", "predicted", "expected"),
    [
        (
            "denoising-dirty-documents",
            GREYS,
            CLEANED,
            math.sqrt(np.mean((GREYS - CLEANED) ** 2)),
        ),
        (
            "leaf-classification",
            ONE_HOT,
            CHANCES,
            -np.mean(np.log(CHANCES[np.arange(NUM), PICKED])),
        ),
        (
            "statoil-iceberg-classifier-challenge",
            BITS[:, 0],
            GREYS,
            -np.mean(np.log(np.where(BITS[:, 0], GREYS, 1 - GREYS))),
        ),
        (
            "whale-categorization-playground",
            LABELS,
            RANKINGS,
            reciprocal_rank(LABELS, RANKINGS),
        ),
        (
            "learning-agency-lab-automated-essay-scoring-2",
            MARKS,
            GUESSES,
            kappa(MARKS, GUESSES),
        ),
        (
            "detecting-insults-in-social-commentary",
            BITS[:, 0],
            SHARES[:, 0],
            by_pairs(BITS[:, 0], SHARES[:, 0]),
        ),
        (
            "spooky-author-identification",
            ONE_HOT,
            CHANCES,
            -np.mean(np.log((ONE_HOT * CHANCES).sum(axis=1))),
        ),
        (
            "jigsaw-toxic-comment-classification-challenge",
            BITS,
            SHARES,
            np.mean([by_pairs(BITS[:, i], SHARES[:, i]) for i in range(6)]),
        ),
        (
            "us-patent-phrase-to-phrase-matching",
            GREYS,
            CLEANED,
            np.corrcoef(GREYS, CLEANED)[0, 1],
        ),
        (
            "tabular-playground-series-dec-2021",
            MARKS.astype(str),
            GUESSES.astype(str),
            np.mean(MARKS == GUESSES),
        ),
    ],
)
def test_metrics_agree_with_their_definitions(name, truth, predicted, expected):
    function = read_spec(ROOT / name).metric.function
    got = function(truth.reshape(NUM, -1), predicted.reshape(NUM, -1))
    assert got == pytest.approx(expected, abs=1e-9)
