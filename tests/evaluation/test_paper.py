"""Published numbers stay as published; ours stand beside them only where they may."""

import pytest

from mlagent_jax.evaluation.paper import load_published, published_table
from tests.samples import make_task

PUBLISHED = load_published()


def make_summary(**tasks):
    names = list(dict.fromkeys(n for task in tasks.values() for n in task))
    return {"tasks": tasks, "policies": dict.fromkeys(names)}


def test_the_table_has_the_papers_thirteen_tasks_and_six_agents():
    table = published_table(PUBLISHED, make_summary(), {})
    assert len(table.rows) == 13
    assert len(table.columns) == 3 + 2 * 6
    cifar = dict(zip(table.columns, table.rows[0], strict=True))
    assert cifar["ml-agent avg"] == "68.88"
    assert cifar["gpt-4o best"] == "80.83"
    assert "evaluated none of the paper's tasks" in table.note


def test_ml_agent_is_bold_in_every_row_as_in_the_paper():
    table = published_table(PUBLISHED, make_summary(), {})
    column = table.columns.index("ml-agent avg")
    assert {(row, column) for row in range(13)} <= table.best


def test_tasks_of_the_offline_pack_add_no_column():
    summary = make_summary(insults={"ppo": {"avg": 0.99, "best": 0.99}})
    table = published_table(PUBLISHED, summary, {"insults": make_task(id="insults")})
    assert not any("ppo" in column for column in table.columns)


def test_a_task_of_the_paper_gets_our_numbers_in_its_unit_and_marked():
    task = make_task(id="cifar-10", metric="accuracy")
    summary = make_summary(**{"cifar-10": {"ppo": {"avg": 0.7, "best": 0.75}}})
    table = published_table(PUBLISHED, summary, {"cifar-10": task})
    cifar = dict(zip(table.columns, table.rows[0], strict=True))
    assert cifar["ppo (measured here) avg"] == "70"
    assert cifar["ppo (measured here) best"] == "75"
    other = dict(zip(table.columns, table.rows[1], strict=True))
    assert other["ppo (measured here) avg"] == "not run"
    assert (0, table.columns.index("ppo (measured here) avg")) in table.best
    assert table.columns[3:7:2] == ("ml-agent avg", "ppo (measured here) avg")
    assert table.header_cells()[5:7] == ["avg", "best"]


@pytest.mark.parametrize("change", [{"metric": "rmse"}, {"direction": "min"}])
def test_another_metric_or_direction_is_not_compared(change):
    task = make_task(**({"id": "cifar-10", "metric": "accuracy"} | change))
    summary = make_summary(**{"cifar-10": {"ppo": {"avg": 0.7, "best": 0.75}}})
    table = published_table(PUBLISHED, summary, {"cifar-10": task})
    assert table.rows[0][5:7] == ("not run", "not run")


def test_curves_of_figure_4_have_a_value_for_every_hour():
    for kind in ("step_wise", "episode_wise"):
        curve = PUBLISHED.figure_4[kind]
        assert len(curve["hours"]) == len(curve["held_in"]) == len(curve["held_out"])
    for gains in PUBLISHED.figure_3["gains"].values():
        assert len(gains) == len(PUBLISHED.figure_3["agents"])
