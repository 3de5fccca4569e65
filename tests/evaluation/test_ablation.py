"""Ablation files survive a round trip; their tables are computed from the seeds."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from mlagent_jax.errors import DataError
from mlagent_jax.evaluation.ablation import (
    Ablation,
    AblationRun,
    CurvePoint,
    Variant,
    ablation_table,
    ablation_tables,
    difference_table,
    read_ablations,
    write_ablation,
)
from mlagent_jax.evaluation.ablation_figures import curve_figure

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


def make_run(seed: int, **held_in: tuple[float, ...]) -> AblationRun:
    return AblationRun(seed=seed, values={}, gains={"held_in": dict(held_in)})


def make_pair(ours, theirs) -> Ablation:
    variants = Variant(name="base", runs=theirs), Variant(name="ours", runs=ours)
    return Ablation(name="x", title="X", metrics={}, variants=variants)


def test_differences_are_within_a_seed_and_over_the_tasks_that_both_have():
    theirs = (make_run(0, a=(1.0, 1.0), b=(5.0, 5.0)), make_run(1, a=(0.0,)))
    ours = (
        make_run(0, a=(3.0, 3.0), b=(4.0, 4.0), c=(99.0,)),
        make_run(1, a=(6.0,)),
        make_run(2, a=(7.0,)),  # without a partner
    )
    table = difference_table(make_pair(ours, theirs))
    assert table is not None
    # Seed 0: (2 - 1) / 2 over tasks; nothing to resample, so the interval is a point.
    assert table.rows[0][:5] == ("ours", "0", "+0.5", "[+0.5, +0.5]", "1 / 1 / 0")
    assert table.rows[1][:5] == ("ours", "1", "+6.0", "[+6.0, +6.0]", "1 / 0 / 0")
    low, high = stats.t.interval(0.95, 1, loc=3.25, scale=stats.sem([0.5, 6.0]))
    assert table.rows[2][:3] == ("ours", "all", "+3.2")
    assert table.rows[2][3:5] == (f"[{low:+.1f}, {high:+.1f}]", "2 / 0 / 0")
    assert [row[5:] for row in table.rows] == [("–", "–", "–")] * 3
    assert len(table.rows) == 3


def test_the_interval_of_a_seed_resamples_trajectories_within_tasks():
    rng = np.random.default_rng(0)
    ours = make_run(0, a=tuple(rng.normal(1.0, 2.0, 50)))
    theirs = make_run(0, a=tuple(rng.normal(0.0, 2.0, 50)))
    table = difference_table(make_pair((ours,), (theirs,)))
    assert table is not None
    low, high = map(float, table.rows[0][3].strip("[]").split(", "))
    deviation = np.hypot(*(np.std(r.gains["held_in"]["a"]) for r in (ours, theirs)))
    assert high - low == pytest.approx(2 * 1.96 * deviation / np.sqrt(50), rel=0.1)


def test_curves_are_drawn_where_there_are_two_to_compare(tmp_path):
    ablation = make_ablation()
    assert [v.name for v in ablation.variants_with_runs()] == ["on", "off"]
    assert curve_figure(ablation, tmp_path) is None  # "off" has none
    on = ablation.variants[0]
    twice = (on, dataclasses.replace(on, name="again"))
    both = dataclasses.replace(ablation, variants=twice)
    figure = curve_figure(both, tmp_path)
    assert figure is not None
    assert (tmp_path / f"{figure.name}.png").stat().st_size > 0


def test_the_best_versions_have_differences_of_their_own():
    def run(gain, best):
        return AblationRun(
            seed=0,
            values={},
            gains={"held_out": {"a": (gain,)}},
            selected_gains={"held_out": {"a": (best,)}},
        )

    _, final, best = ablation_tables(make_pair((run(-50.0, 9.0),), (run(2.0, 5.0),)))
    assert final.rows[0][5] == "-52.0"
    assert best.rows[0][5] == "+4.0"
    assert final.name == "ablation_x_differences"
    assert best.name == "ablation_x_differences_best"


def test_without_a_seed_in_common_there_are_no_differences():
    pair = make_pair((make_run(0, a=(1.0,)),), (make_run(1, a=(1.0,)),))
    assert difference_table(pair) is None
    assert difference_table(make_ablation()) is None


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
