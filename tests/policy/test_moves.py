"""Moves become edits that apply, and are found again in the text of ideas."""

import pytest

from mlagent_jax.env.workspace import apply_action
from mlagent_jax.policy.moves import Move, apply_move, find_moves
from tests.samples import SCRIPT

FOREST = Move(
    id="model/1",
    dimension="model",
    say="use a random forest",
    find="^model = .*$",
    code="model = ensemble.RandomForestRegressor()",
)
LASSO = Move(
    id="model/2",
    dimension="model",
    say="use the lasso",
    find="^model = .*$",
    code="model = linear_model.Lasso()",
)
CENTER = Move(
    id="features/1",
    dimension="features",
    say="center the features",
    find="^features = .*$",
    code='features = np.load("data/train.npy")\nfeatures -= features.mean(0)',
)
MOVES = (FOREST, LASSO, CENTER)


def apply(action, script):
    change = apply_action({"train.py": script.encode()}, action)
    return change.files["train.py"].decode()


def test_a_move_becomes_an_edit_that_the_environment_applies():
    action = apply_move(FOREST, SCRIPT)
    assert action.blocks == (("model = linear_model.Ridge()\n", FOREST.code + "\n"),)
    assert FOREST.code in apply(action, SCRIPT).splitlines()


def test_a_move_may_add_lines_and_change_a_part_of_one():
    assert "\nfeatures -= features.mean(0)\nmodel" in apply(
        apply_move(CENTER, SCRIPT), SCRIPT
    )
    part = Move(id="a/1", dimension="a", say="x", find="Ridge", code="Lasso")
    assert "model = linear_model.Lasso()" in apply(apply_move(part, SCRIPT), SCRIPT)


def test_moves_of_different_dimensions_can_be_combined_in_any_order():
    one = apply(apply_move(FOREST, SCRIPT), SCRIPT)
    both = apply(apply_move(CENTER, one), one)
    other = apply(apply_move(CENTER, SCRIPT), SCRIPT)
    assert both == apply(apply_move(FOREST, other), other)


def test_a_move_that_is_made_or_finds_nothing_is_no_edit():
    done = apply(apply_move(FOREST, SCRIPT), SCRIPT)
    assert apply_move(FOREST, done) is None
    assert apply_move(FOREST, "print(1)\n") is None


@pytest.mark.parametrize(
    "script",
    [
        "x = 1\nmodel = a\ny = 2\nmodel = a\n",
        "model = a\nx = 1\nmodel = a\n",
        "model = a\nmodel = a\nx = 1",
        "  model = a\nmodel = a\n",
    ],
)
def test_a_search_text_that_is_not_unique_grows_until_it_is(script):
    expected = script.replace("\nmodel = a", "\n" + FOREST.code, 1)
    if script.startswith("model = a"):
        expected = script.replace("model = a", FOREST.code, 1)
    assert apply(apply_move(FOREST, script), script).strip() == expected.strip()


def test_ideas_name_moves_by_phrase_in_their_order():
    text = "First CENTER the features; then use a random forest."
    assert find_moves(text, MOVES) == [CENTER, FOREST]


def test_a_longer_phrase_hides_the_shorter_one_inside_it():
    many = Move(
        id="model/3",
        dimension="model",
        say="use a random forest with many trees",
        find="x",
        code="y",
    )
    assert find_moves("Use a random forest with many trees.", (*MOVES, many)) == [many]
    both = "Use a random forest with many trees or use a random forest."
    assert find_moves(both, (*MOVES, many)) == [many, FOREST]


def test_a_freely_written_idea_names_moves_by_their_words():
    text = "A random kind of forest is what I would use: a big one."
    assert find_moves(text, MOVES) == [FOREST]
    assert find_moves("Think about the data.", MOVES) == []
