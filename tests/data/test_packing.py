import numpy as np
import pytest

from mlagent_jax.data.packing import pack_rows


def test_an_example_goes_to_the_fullest_row_that_has_room():
    assert pack_rows([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]


def test_no_more_rows_are_open_than_the_window():
    # With one open row a short example cannot go back to the first row.
    assert pack_rows([6, 9, 4], 10, window=2) == [[0, 2], [1]]
    assert pack_rows([6, 9, 4], 10, window=1) == [[0], [1], [2]]


@pytest.mark.parametrize("window", [1, 3, 64])
def test_every_example_is_in_one_row_that_it_fits(window):
    lengths = np.random.default_rng(0).integers(1, 101, 500).tolist()
    rows = pack_rows(lengths, 100, window)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 100
    assert rows == pack_rows(lengths, 100, window)


def test_log_uniform_lengths_leave_little_padding():
    rng = np.random.default_rng(1)
    lengths = np.exp(rng.uniform(np.log(64), np.log(2048), 1000)).astype(int).tolist()
    rows = pack_rows(lengths, 2048)
    assert sum(lengths) / (2048 * len(rows)) > 0.95
