"""What a task folder declares: reading task.toml and checking it.

Not for the task's data, which `env.task` prepares, and not for the rules of task.toml,
which are in `env.task_rules`. All that is wrong with a folder is reported at once.
"""

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mlagent_jax.env.metrics import METRICS, Metric
from mlagent_jax.env.task_rules import toml_problems
from mlagent_jax.errors import TaskError
from mlagent_jax.types import HumanScores, Limits, Split

ENTRY_SCRIPT: Final = "train.py"
SAMPLE_FILE: Final = "sample_submission.csv"
MAX_SUMMARY_WORDS: Final = 20

_FILES = ("task.toml", "description.md", ENTRY_SCRIPT, "prepare.py")
# What the prepared files depend on, besides prepare.py.
_DATA_KEYS = (
    "id",
    "version",
    "seed",
    "metric",
    "id_column",
    "target_columns",
    "classes",
    "target_range",
)
# Likewise, where they are given.
_OPTIONAL_DATA_KEYS = ("optional_columns", "sample_submission")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealSpec:
    """What task.toml says of the real data, table [real].

    Attributes:
      kaggle: slug of the competition, None if the data is not Kaggle's.
      url: where the data comes from otherwise.
      license: under which terms.
      split: how visible and hidden rows are divided, for people.
      notes: where we differ from the original, for people.
      num_train: published number of visible examples, None if not known.
      num_test: published number of hidden rows, likewise.
      best: the score that rewards count as best.
      best_from: where it comes from.
      limits: of one script run on the real data.
      human: thresholds of people, None without a leaderboard.
    """

    kaggle: str | None
    url: str | None
    license: str
    split: str
    notes: str
    num_train: int | None
    num_test: int | None
    best: float
    best_from: str
    limits: Limits
    human: HumanScores | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A checked task.toml with the texts of its folder; fields as in `types.Task`.

    Attributes:
      seed: of the generator that `prepare` gets.
      seed_mean: mean score of the starter over five seeds of its own randomness.
      seed_std: standard deviation over these seeds.
      stderr: largest bootstrap standard error of a score on one hidden part.
      best_from: how `best` was reached.
      num_train: declared number of visible examples, None if not declared.
      num_test: declared number of hidden rows, likewise.
      real: the real data; None if the task has no other than what it makes itself.
      data_hash: changes with anything that the prepared data depends on.
    """

    id: str
    version: int
    split: Split
    modality: str
    metric: Metric
    id_column: str
    target_columns: tuple[str, ...]
    classes: tuple[str, ...]
    target_range: tuple[float, float] | None
    optional_columns: tuple[str, ...]
    sample_file: str
    is_deterministic: bool
    seed: int
    baseline: float
    seed_mean: float
    seed_std: float
    best: float
    best_from: str
    stderr: float
    limits: Limits
    description: str
    starter: dict[str, str]
    num_train: int | None
    num_test: int | None
    real: RealSpec | None
    data_hash: str


def read_spec(folder: Path) -> TaskSpec:
    """Returns what `folder` declares.

    Raises:
      TaskError: the folder breaks the contract of tasks/README.md; lists all problems.
    """
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise TaskError(f"{folder}: missing {', '.join(missing)} (see tasks/README.md)")
    try:
        texts = {name: (folder / name).read_text(encoding="utf-8") for name in _FILES}
        table = tomllib.loads(texts["task.toml"])
    except ValueError as error:  # No TOML, or not UTF-8.
        raise TaskError(f"{folder}: {error}") from error
    problems = toml_problems(table, folder.resolve().name)
    num_words = len(texts["description.md"].partition("\n")[0].split())
    if not 1 <= num_words <= MAX_SUMMARY_WORDS:
        problems.append(
            f"description.md: first line has {num_words} words; expected one sentence "
            f"of at most {MAX_SUMMARY_WORDS}"
        )
    if problems:
        raise TaskError(f"{folder}: " + f"\n{folder}: ".join(problems))
    return _make_spec(table, texts)


def _make_spec(table: Mapping[str, Any], texts: Mapping[str, str]) -> TaskSpec:
    scores = table["scores"]
    target_range = table.get("target_range")
    rows = table.get("rows", {})
    values = [table.get(key) for key in _DATA_KEYS]
    values += [table[key] for key in _OPTIONAL_DATA_KEYS if key in table]
    data_values = json.dumps(values)
    data_bytes = f"{data_values}\n{texts['prepare.py']}".encode()
    return TaskSpec(
        id=table["id"],
        version=table["version"],
        split=table["split"],
        modality=table["modality"],
        metric=METRICS[table["metric"]],
        id_column=table["id_column"],
        target_columns=tuple(table["target_columns"]),
        classes=tuple(str(c) for c in table.get("classes", ())),
        target_range=None
        if target_range is None
        else (float(target_range[0]), float(target_range[1])),
        optional_columns=tuple(table.get("optional_columns", ())),
        sample_file=table.get("sample_submission", SAMPLE_FILE),
        is_deterministic=table.get("deterministic", True),
        seed=table["seed"],
        baseline=float(scores["baseline"]),
        seed_mean=float(scores["seed_mean"]),
        seed_std=float(scores["seed_std"]),
        best=float(scores["best"]),
        best_from=scores["best_from"],
        stderr=float(scores["stderr"]),
        limits=Limits(**table.get("limits", {})),
        description=texts["description.md"],
        starter={ENTRY_SCRIPT: texts[ENTRY_SCRIPT]},
        num_train=rows.get("train"),
        num_test=rows.get("test"),
        real=_make_real(table["real"]) if "real" in table else None,
        data_hash=hashlib.sha256(data_bytes).hexdigest(),
    )


def _make_real(table: Mapping[str, Any]) -> RealSpec:
    rows = table.get("rows", {})
    human = table.get("human")
    return RealSpec(
        kaggle=table.get("kaggle"),
        url=table.get("url"),
        license=table["license"],
        split=table["split"],
        notes=table.get("notes", ""),
        num_train=rows.get("train"),
        num_test=rows.get("test"),
        best=float(table["best"]),
        best_from=table["best_from"],
        limits=Limits(**table.get("limits", {})),
        human=None
        if human is None
        else HumanScores(
            provenance=human["from"],
            **{key: value for key, value in human.items() if key != "from"},
        ),
    )
