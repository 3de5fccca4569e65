"""Task folders: list, check, measure, grade, run, import, scaffold.

    python -m launch.tasks list
    python -m launch.tasks check digits spaceship-titanic       # keeps it the contract?
    python -m launch.tasks check --all
    python -m launch.tasks measure digits --write               # scores into task.toml
    python -m launch.tasks prepare spaceship-titanic --data_dir=runs/mine
    python -m launch.tasks run spaceship-titanic my_train.py    # in the sandbox
    python -m launch.tasks grade spaceship-titanic submission.csv
    python -m launch.tasks import spaceship-titanic ~/Downloads/spaceship-titanic.zip
    python -m launch.tasks new churn --csv=customers.csv --target=left

A task is a folder under --task_root; tasks/README.md says what it holds. Those named
after a Kaggle competition have two sources of data. Without more, their *lookalike* is
used: made up from a seed in the layout of the real archive. `import` turns the real
archive, a file or folder that you downloaded, into data below --real_data (without an
archive it asks the `kaggle` program, where that is set up); give --real_data=FOLDER to
the other commands to use it.

`run` and `grade` print one JSON record; `run` uses the sandbox and limits of training.
Both score the hidden test part, which no policy ever sees: they are for people. Data is
prepared in a temporary folder, or kept and used again in --data_dir.

`new` makes a folder from a CSV file with a target column: it chooses a metric that fits
the target (--metric overrides), writes description, starter and prepare.py, measures
the starter and checks everything. The CSV file may lack values, hold texts, dates and
booleans, and be in another encoding than UTF-8.
"""

import sys

from absl import app, flags

from launch import exits
from launch.tasks import commands
from mlagent_jax.errors import MlAgentError

_ALL = flags.DEFINE_bool("all", False, "check, measure: every task of --task_root.")
_TASK_ROOT = flags.DEFINE_string("task_root", "tasks", "Folder of task folders.")
_REAL_DATA = flags.DEFINE_string(
    "real_data", None, "Folder of imported real data; import: default real_data."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Run directory in which data is prepared once and kept."
)
_WRITE = flags.DEFINE_bool("write", False, "measure: update [scores] of task.toml.")
_QUICK = flags.DEFINE_bool("quick", False, "measure: no search of combinations.")
_FIRST = flags.DEFINE_list(
    "first", [], "measure --quick: ids of moves to start from, e.g. cols/1,model/2."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "import, measure: runs on real data.")
_CSV = flags.DEFINE_string("csv", None, "new: the table, a CSV file with a header.")
_TARGET = flags.DEFINE_string("target", None, "new: name of the column to predict.")
_ID = flags.DEFINE_string("id", None, "new: column that names rows; it is left out.")
_METRIC = flags.DEFINE_string("metric", None, "new: instead of the one chosen.")
_ENCODING = flags.DEFINE_string("encoding", None, "new: of the CSV file; else guessed.")


def _main(argv: list[str]) -> None:
    options = commands.Options(
        task_root=_TASK_ROOT.value,
        real_data=_REAL_DATA.value,
        data_dir=_DATA_DIR.value,
        is_all=_ALL.value,
        write=_WRITE.value,
        is_quick=_QUICK.value,
        first=tuple(_FIRST.value),
        num_seeds=_SEEDS.value,
        csv=_CSV.value,
        target=_TARGET.value,
        id_column=_ID.value,
        metric=_METRIC.value,
        encoding=_ENCODING.value,
    )
    try:
        is_right = commands.dispatch(argv[1:], options)
    except MlAgentError as error:
        exits.fail(str(error))
    except KeyboardInterrupt:
        exits.fail("interrupted", status=130)
    else:
        sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    app.run(_main)
