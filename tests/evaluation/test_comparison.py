"""Differences, medians and sign tests by hand-computed cases."""

import pytest
from scipy import stats

from mlagent_jax.evaluation.comparison import (
    compare,
    compare_all,
    comparison_table,
    gain_table,
    interesting_pairs,
)
from mlagent_jax.evaluation.records import EvalRecord
from mlagent_jax.evaluation.scores import sign_test, summarize
from tests.samples import make_trajectory


def make_records(policy, split="held_in", best=0.0, **gains):
    return [
        EvalRecord(
            trajectory=make_trajectory(f"{task}/{policy}/{k:03d}", task_id=task),
            split=split,
            start_score=1.0,
            final_score=1.0 + gain / 100,
            selected_score=1.0 + best / 100,
            relative_gain_percent=gain,
            selected_gain_percent=best,
            step_rewards=(),
        )
        for task, values in gains.items()
        for k, gain in enumerate(values)
    ]


EVALUATIONS = {
    "ppo": make_records("ppo", a=[10.0, 20.0], b=[5.0, 5.0], c=[0.0, 0.0], d=[9.0]),
    "sft": make_records("sft", a=[5.0, 5.0], b=[1.0, 3.0], c=[0.0, 0.0]),
}


def test_a_comparison_is_over_the_tasks_that_both_ran():
    result = compare(EVALUATIONS, "ppo", "sft", "held_in")
    assert result is not None
    assert result.difference.num == 3
    assert result.difference.mean == pytest.approx((10.0 + 3.0 + 0.0) / 3)
    assert result.median_difference == pytest.approx(3.0)
    low, high = result.difference.ci95
    # Each resampled mean of ppo on `a` lies in [10, 20], of sft on `b` in [1, 3].
    assert (5 + 2) / 3 <= low <= result.difference.mean <= high <= (15 + 4) / 3
    tasks = result.tasks
    assert (tasks.num_better, tasks.num_worse, tasks.num_equal) == (2, 0, 1)
    assert tasks.p_value == pytest.approx(0.5)
    assert "2 / 0 / 1" in comparison_table([result]).rows[0]


def test_policies_without_a_common_task_are_not_compared():
    assert compare(EVALUATIONS, "ppo", "sft", "held_out") is None


def test_the_best_version_is_compared_beside_the_final_one_if_it_is_another():
    evaluations = {
        "ppo": make_records("ppo", best=30.0, a=[10.0, 20.0]),
        "sft": make_records("sft", best=24.0, a=[11.0]),
    }
    final, best = compare_all(evaluations)
    assert (final.version, best.version) == ("final", "selected")
    assert final.difference.mean == pytest.approx(15.0 - 11.0)
    assert best.difference.mean == pytest.approx(30.0 - 24.0)
    rows = comparison_table([final, best]).rows
    assert [row[2:4] for row in rows] == [
        ("final", "+4.0"),
        ("best", "+6.0"),
    ]
    kept = {
        "ppo": make_records("ppo", best=7.0, a=[7.0]),
        "sft": make_records("sft", best=7.0, a=[7.0]),
    }
    assert [c.version for c in compare_all(kept)] == ["final"]


def test_the_sign_test_is_the_binomial_one_without_ties():
    result = sign_test([1.0, 2.0, 3.0, -1.0, 0.0])
    assert result.p_value == pytest.approx(stats.binomtest(3, 4).pvalue)
    assert result.num_equal == 1
    assert sign_test([0.0, 0.0]).p_value == 1.0
    assert sign_test([1.0] * 9).p_value == pytest.approx(2 / 2**9)


def test_a_summary_of_one_value_has_no_width():
    summary = summarize([3.0])
    assert (summary.mean, summary.median, summary.ci95) == (3.0, 3.0, (3.0, 3.0))
    with pytest.raises(ValueError, match="at least one value"):
        summarize([])


def test_pairs_answer_questions_and_name_policies_that_are_there():
    names = ["starter", "expert", "sft", "ppo", "tree:ppo", "api:big"]
    pairs = interesting_pairs(names)
    assert pairs[0] == ("ppo", "sft")
    assert ("tree:ppo", "ppo") in pairs
    assert ("ppo", "api:big") in pairs
    assert interesting_pairs(["starter"]) == []


def test_the_gain_table_has_mean_median_best_and_signs_of_every_task():
    rows = {(row[0], row[2]): row for row in gain_table(EVALUATIONS).rows}
    assert rows["a", "ppo"][3:5] == ("+15.0", "+15.0")
    assert rows["a", "ppo"][6:] == ("+20.0", "2 / 0 / 0", "0.500")
    assert len(rows) == 7
