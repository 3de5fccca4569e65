"""A figure becomes files and an element that can stand in a page with others."""

import re

from mlagent_jax.evaluation.drawing import canvas, clean, finish, policy_color
from mlagent_jax.evaluation.tables import Table

TABLE = Table(name="x", title="t", columns=("a",), rows=(("1",),))


def draw(folder, name):
    with canvas() as (figure, (axis,)):
        axis.plot([0, 1], [0, 1])
        clean(axis)
        return finish(figure, folder, name=name, title="t", caption="c", table=TABLE)


def test_a_figure_is_written_as_png_svg_markdown_and_csv(tmp_path):
    draw(tmp_path, "one")
    assert {p.name for p in tmp_path.iterdir()} == {
        "one.png",
        "one.svg",
        "x.md",
        "x.csv",
    }
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_the_element_needs_no_network_and_follows_the_theme(tmp_path):
    svg = draw(tmp_path, "one").svg
    assert svg.startswith("<svg")
    assert "http" not in svg
    assert "var(--line)" in svg
    assert "#dfe5ea" not in svg


def test_ids_of_two_figures_differ_and_every_reference_resolves(tmp_path):
    ids = []
    for name in ("one", "two"):
        svg = draw(tmp_path, name).svg
        found = set(re.findall(r'\bid="([^"]+)"', svg))
        used = re.findall(r'href="#([^"]+)"', svg) + re.findall(r"url\(#([^)]+)\)", svg)
        assert used
        assert set(used) <= found
        ids.append(found)
    assert not ids[0] & ids[1]


def test_the_same_figure_makes_the_same_svg(tmp_path):
    assert draw(tmp_path / "a", "one").svg == draw(tmp_path / "b", "one").svg


def test_policies_keep_their_colour_and_others_get_different_ones():
    names = ["sft", "ppo", "tree:ppo", "api:big"]
    assert policy_color("ppo", names) == policy_color("ppo", ["ppo"])
    assert len({policy_color(n, names) for n in names}) == 4
