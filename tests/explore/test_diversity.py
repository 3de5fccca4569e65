"""Farthest-point selection by hand-made cases, and what it is for."""

import numpy as np
import pytest

from mlagent_jax.explore.diversity import (
    AXES,
    axis_distances,
    farthest_points,
    largest_mean_distance,
    mean_pairwise_distance,
    select_diverse,
)
from mlagent_jax.explore.embeddings import embed_words

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
    vectors = embed_words(TEXTS, seed=0)
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


def test_version_one_takes_those_with_the_largest_mean_distance():
    # Mean distances to all five: the point at 180 is farthest, then the one at 90.
    points = on_circle(0, 5, 10, 90, 180)
    distances = 1 - points @ points.T
    order = np.argsort(-distances.mean(axis=1), kind="stable")
    assert largest_mean_distance(points, 2) == tuple(order[:2]) == (4, 3)


def test_version_two_measures_along_each_axis_by_itself():
    ideas = [
        "use a random forest",
        "use a neural network",
        "scale the features",
        "average several models",
    ]
    distances = dict(zip(AXES, axis_distances(ideas, 0, embed_words), strict=True))
    for matrix in distances.values():
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-9)
        np.testing.assert_allclose(np.diag(matrix), 0, atol=1e-9)
    # Two models are farther apart along "model" than along "data".
    assert distances["model"][0, 1] > distances["data"][0, 1]


def test_texts_that_say_nothing_along_an_axis_are_equal_there_and_far_from_others():
    def embed(texts, seed):
        axis = {"use": 0, "scale": 1, "average": 2, "zzz": 4, "yyy": 4}
        rows = [np.eye(5)[axis.get(t.split()[0], 3)] for t in texts]
        return np.asarray(rows)

    model, data, _ = axis_distances(["use x", "zzz", "yyy", "scale y"], 0, embed)
    assert model[1, 2] == 0.0
    assert model[0, 1] == pytest.approx(1.0)
    assert data[0, 1] == pytest.approx(0.0)


@pytest.mark.parametrize("method", ["farthest", "paper_v1", "paper_v2"])
def test_every_method_chooses_different_texts_and_repeats(method):
    first, second = (select_diverse(TEXTS, 10, 3, method=method) for _ in range(2))
    assert first == second
    assert len(set(first.indices)) == 10
    # Only farthest points promise to be far from each other: those with the largest
    # mean distance to the pool may well lie together.
    if method == "farthest":
        assert first.mean_distance > first.random_mean_distance
