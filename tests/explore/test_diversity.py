"""Farthest-point selection by hand-made cases, and what it is for."""

import numpy as np
import pytest

from mlagent_jax.explore.diversity import (
    embed,
    farthest_points,
    mean_pairwise_distance,
    select_diverse,
)

TEXTS = [
    f"{verb} the {noun} with {tool}"
    for verb in ("scale", "drop", "encode", "shuffle")
    for noun in ("features", "rows", "labels", "pixels", "edges")
    for tool in ("a forest", "a network", "a spline", "a kernel", "care")
]


def on_circle(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_each_point_is_the_farthest_from_those_before_it():
    points = on_circle(0, 10, 100, 180, 350)
    assert farthest_points(points, 3, first=0) == (0, 3, 2)


def test_no_point_is_chosen_twice_even_where_all_are_alike():
    points = on_circle(0, 0, 0, 0)
    assert sorted(farthest_points(points, 4, first=2)) == [0, 1, 2, 3]


def test_the_mean_distance_counts_every_pair_once():
    assert mean_pairwise_distance(on_circle(0, 90, 180)) == pytest.approx(4 / 3)
    assert mean_pairwise_distance(on_circle(0)) == 0.0


def test_texts_become_unit_vectors_and_shared_words_bring_them_closer():
    vectors = embed(TEXTS, seed=0)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(TEXTS)))
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[-1]
    assert near > far


def test_selected_texts_are_farther_apart_than_random_ones():
    selection = select_diverse(TEXTS, 10, seed=0)
    assert len(set(selection.indices)) == 10
    assert selection.mean_distance > selection.random_mean_distance + 0.03
    assert selection.random_mean_distance == pytest.approx(
        selection.pool_mean_distance, abs=0.02
    )


def test_a_selection_follows_its_seed():
    chosen = [select_diverse(TEXTS, 5, seed).indices for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize("texts", [["use a forest"], ["a", "a b"], ["x", "y"]])
def test_tiny_pools_work(texts):
    selection = select_diverse(texts, len(texts), seed=0)
    assert sorted(selection.indices) == list(range(len(texts)))


@pytest.mark.parametrize("k", [0, 4])
def test_a_size_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=f"k = {k}: expected 1 to 3"):
        select_diverse(["a", "b", "c"], k, seed=0)
