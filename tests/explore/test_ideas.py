"""Idea pools are large, distinct and readable by the expert; bad files are named."""

import pytest

from mlagent_jax.errors import TaskError
from mlagent_jax.explore.ideas import generate_ideas, load_moves, read_moves
from mlagent_jax.policy.moves import find_moves
from tests.samples import SCRIPT

GOOD = """\
[[model]]
say = "use the lasso"
find = '^model = .*$'
code = 'model = linear_model.Lasso()'

[[features]]
say = "center the features"
find = '^features = .*$'
code = '''
features = np.load("data/train.npy")
features -= features.mean(0)'''
"""
# Enough for a pool: 3 dimensions of 5 moves allow 15 + 75 + 125 ideas.
MANY = "".join(
    f"[[{dimension}]]\nsay = '{verb} {noun}'\nfind = '^{dimension} .*$'\n"
    f"code = '{dimension} = {noun}'\n"
    for dimension, verb in (("model", "fit"), ("features", "make"), ("from", "import"))
    for noun in ("ants", "bees", "cats", "dogs", "eels")
)


def write(tmp_path, text=GOOD, script=SCRIPT):
    folder = tmp_path / "toy"
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(script)
    (folder / "moves.toml").write_text(text)
    return folder / "moves.toml"


def test_moves_are_read_by_task_in_the_order_of_the_file(tmp_path):
    write(tmp_path)
    lasso, center = load_moves(tmp_path, ["toy"])["toy"]
    assert (lasso.id, lasso.dimension, lasso.say) == (
        "model/1",
        "model",
        "use the lasso",
    )
    assert center.code.startswith("features = np.load")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("say = ", "said = ", r"\[\[model\]\] number 1: expected the texts say"),
        ('"use the lasso"', "7", "expected the texts"),
        ('"use the lasso"', '"  "', "expected the texts"),
        ('"use the lasso"', r'"a\nb"', "one short line"),
        ('"use the lasso"', '"center the features"', "is read as"),
        ("'^model = .*$'", "'^model = (.*$'", "find = .*model = "),
        ("'^model = .*$'", "'^modle = .*$'", "matches 0 places of train.py"),
        ("'^model = .*$'", "'model'", "matches 4 places of train.py"),
        ("'^model = .*$'", "'(?=model = )'", "one that is not empty"),
        ("[[model]]", "[model]", r"expected tables \[\[model\]\]"),
        ("[[model]]", "[[model]", "toml"),
        (GOOD, "", "no moves"),
    ],
)
def test_a_file_that_breaks_the_contract_is_refused(tmp_path, old, new, message):
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(TaskError, match=message):
        read_moves(path)


def test_all_problems_of_a_file_are_listed(tmp_path):
    text = GOOD.replace("^model", "^modle").replace("^features", "^faetures")
    with pytest.raises(TaskError) as caught:
        read_moves(write(tmp_path, text))
    assert "modle" in str(caught.value)
    assert "faetures" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"no_task/moves.toml: No such file"):
        load_moves(tmp_path, ["no_task"])


def test_a_pool_has_the_wanted_number_of_different_ideas(tmp_path):
    moves = read_moves(write(tmp_path, MANY))
    ideas = generate_ideas(moves, 120, seed=0)
    assert len({idea.text for idea in ideas}) == 120
    assert len({frozenset(idea.moves) for idea in ideas}) == 120
    sizes = [len(idea.moves) for idea in ideas]
    # Fifteen moves allow no more than fifteen ideas of one move.
    assert [sizes.count(size) for size in (1, 2, 3)][0] == 15
    assert min(sizes.count(size) for size in (2, 3)) > 30


def test_the_expert_finds_the_moves_of_every_idea_in_its_text(tmp_path):
    moves = read_moves(write(tmp_path, MANY))
    for idea in generate_ideas(moves, 215, seed=1):
        found = find_moves(idea.text, moves)
        assert tuple(move.id for move in found) == idea.moves
        assert len({move.dimension for move in found}) == len(found)


def test_a_pool_follows_its_seed(tmp_path):
    moves = read_moves(write(tmp_path, MANY))
    pools = [generate_ideas(moves, 50, seed) for seed in (0, 0, 1)]
    assert pools[0] == pools[1] != pools[2]


def test_too_few_moves_are_refused_with_numbers(tmp_path):
    moves = read_moves(write(tmp_path))
    assert len(generate_ideas(moves, 3, seed=0)) == 3
    with pytest.raises(TaskError, match="2 moves allow only 3 ideas, but 4 are wanted"):
        generate_ideas(moves, 4, seed=0)
