"""Layout of samples in arrays."""

import numpy as np
import pytest

from mlagent_jax.errors import DataError
from mlagent_jax.rl.batch import TokenSample, pad_samples


def make_sample(**changes):
    fields = {
        "prompt": (7, 8),
        "reply": (5, 6, 2),
        "logprobs": (-0.4, -0.1, -0.2),
        "reward": 0.7,
    }
    return TokenSample(**(fields | changes))


def test_the_example_of_the_docstring():
    batch = pad_samples([make_sample()], seq_lens=(6,))
    np.testing.assert_array_equal(batch.tokens_BT, [[7, 8, 5, 6, 2, 0]])
    np.testing.assert_array_equal(batch.positions_BT, [[0, 1, 2, 3, 4, 0]])
    np.testing.assert_array_equal(batch.segment_ids_BT, [[1, 1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(batch.response_mask_BT, [[0, 0, 1, 1, 1, 0]])
    expected = np.float32([[0, 0, -0.4, -0.1, -0.2, 0]])
    np.testing.assert_array_equal(batch.behavior_logprobs_BT, expected)
    np.testing.assert_array_equal(batch.rewards_B, np.float32([0.7]))


def test_a_dropped_sample_leaves_its_row_empty():
    batch = pad_samples([make_sample(), None, make_sample()], seq_lens=(6,))
    for array in (batch.tokens_BT, batch.segment_ids_BT, batch.response_mask_BT):
        assert not array[1].any()
        np.testing.assert_array_equal(array[0], array[2])
    np.testing.assert_array_equal(batch.rewards_B, np.float32([0.7, 0, 0.7]))


@pytest.mark.parametrize(("num_tokens", "expected"), [(5, 5), (6, 8), (8, 8), (9, 16)])
def test_the_shortest_length_that_fits_is_used(num_tokens, expected):
    long = make_sample(prompt=tuple(range(num_tokens - 3)))
    batch = pad_samples([make_sample(), long], seq_lens=(5, 8, 16))
    assert batch.tokens_BT.shape == (2, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": (1,) * 4}, "sample 1: 7 tokens, but the longest"),
        ({"prompt": ()}, "sample 1: expected prompt and reply tokens, got 0 and 3"),
        ({"reply": (), "logprobs": ()}, "sample 1: expected prompt and reply"),
        ({"logprobs": (-0.1,)}, "sample 1: 1 log-probabilities for 3 reply tokens"),
        ({"reward": float("nan")}, "sample 1: reward nan"),
    ],
)
def test_unusable_samples_are_refused_by_place(changes, message):
    with pytest.raises(DataError, match=message):
        pad_samples([make_sample(), make_sample(**changes)], seq_lens=(6,))
