"""Ablation files survive a round trip; their tables are computed from the seeds."""

import pytest
from scipy import stats

from mlagent_jax.errors import DataError
from mlagent_jax.evaluation.ablation import (
    Ablation,
    AblationRun,
    CurvePoint,
    Variant,
    ablation_table,
    read_ablations,
    write_ablation,
)

POINT = CurvePoint(
    update=5, train_seconds=60.0, num_executions=320, gain_percent={"held_in": 4.0}
)


def make_ablation(name="exploration"):
    return Ablation(
        name=name,
        title="Exploration on and off",
        metrics={"gain": "held-in gain %", "reward": "step reward"},
        variants=(
            Variant(
                name="on",
                runs=tuple(
                    AblationRun(seed=i, values={"gain": gain}, curve=(POINT,))
                    for i, gain in enumerate([1.0, 2.0, 6.0])
                ),
            ),
            Variant(name="off", runs=(AblationRun(seed=0, values={"reward": 0.5}),)),
            Variant(name="none yet", runs=()),
        ),
        note="Equal executions.",
    )


def test_a_file_is_read_back_as_it_was_written(tmp_path):
    write_ablation(tmp_path, make_ablation("b"))
    write_ablation(tmp_path, make_ablation("a"))
    assert read_ablations(tmp_path) == [make_ablation("a"), make_ablation("b")]
    assert read_ablations(tmp_path / "nothing") == []


def test_a_row_has_mean_median_and_students_interval_of_the_seeds():
    table = ablation_table(make_ablation())
    low, high = stats.t.interval(0.95, 2, loc=3.0, scale=stats.sem([1.0, 2.0, 6.0]))
    assert table.rows[0][:5] == ("on", "3", "3", "2", f"[{low:.4g}, {high:.4g}]")
    assert table.rows[0][5:] == ("–", "–", "–")
    assert table.rows[1][5:] == ("0.5", "0.5", "one seed")
    assert table.rows[2] == ("none yet", "0", *["–"] * 6)
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert table.note == "Equal executions."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("{}", "missing fields"),
        ('{"name": "x", "extra": 1}', "unknown fields"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DataError, match=rf"bad\.json.*{message}"):
        read_ablations(tmp_path)


def test_a_name_that_is_no_file_stem_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'\.\./x': expected letters"):
        write_ablation(tmp_path, make_ablation("../x"))
