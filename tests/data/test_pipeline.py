"""Batches: right padding, every example once an epoch, resumable at any batch."""

from collections import Counter

import numpy as np
import pytest

from mlagent_jax.data.examples import TokenExample
from mlagent_jax.data.pipeline import fill_batch, make_batches, split_examples
from mlagent_jax.errors import DataError

PAD = 0


def make_example(number: int, length: int) -> TokenExample:
    mask_T = np.zeros(length, bool)
    mask_T[-2:] = True
    return TokenExample(
        name=f"t{number // 2:03d}@{number % 2}",
        tokens_T=np.full(length, number + 1, np.int32),
        loss_mask_T=mask_T,
    )


EXAMPLES = [make_example(i, 3 + i % 9) for i in range(23)]
SETTINGS = {"batch_size": 4, "seq_lens": (6, 12), "pad_id": PAD}


def contents(batch) -> list[int]:
    return [int(row[0]) for row in batch.tokens_BT if row[0] != PAD]


def test_a_batch_is_padded_as_drawn():
    batch = fill_batch([[make_example(6, 3)]], num_rows=2, seq_len=5, pad_id=PAD)
    assert batch.tokens_BT.tolist() == [[7, 7, 7, 0, 0], [0, 0, 0, 0, 0]]
    assert batch.positions_BT.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert batch.segment_ids_BT.tolist() == [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert batch.loss_mask_BT.tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]


def test_an_epoch_is_every_example_once_in_few_shapes():
    batches = list(make_batches(EXAMPLES, seed=0, **SETTINGS))
    assert Counter(x for b in batches for x in contents(b)) == Counter(range(1, 24))
    assert {b.tokens_BT.shape for b in batches} == {(4, 6), (4, 12)}


def test_every_epoch_and_every_seed_has_its_own_order():
    dataset = make_batches(EXAMPLES, seed=0, **SETTINGS)
    twice = [contents(b) for b in dataset.repeat(2)]
    first, second = twice[: len(dataset)], twice[len(dataset) :]
    other = [contents(b) for b in make_batches(EXAMPLES, seed=1, **SETTINGS)]
    assert first != second
    assert first != other
    assert Counter(sum(first, [])) == Counter(sum(second, []))


@pytest.mark.parametrize("done", [0, 1, 5, 9])
def test_an_iterator_continues_bit_for_bit_from_its_state(done):
    dataset = make_batches(EXAMPLES, seed=0, **SETTINGS).repeat(3)
    straight = iter(dataset)
    for _ in range(done):
        next(straight)
    state = straight.get_state()
    resumed = iter(make_batches(EXAMPLES, seed=0, **SETTINGS).repeat(3))
    resumed.set_state(state)
    for ours, theirs in zip(straight, resumed, strict=True):
        np.testing.assert_array_equal(ours.tokens_BT, theirs.tokens_BT)
        np.testing.assert_array_equal(ours.loss_mask_BT, theirs.loss_mask_BT)


def test_without_a_seed_the_order_stays():
    batches = list(make_batches(EXAMPLES[:4], seed=None, **SETTINGS))
    assert [contents(b) for b in batches] == [[1, 2, 3, 4]]


def test_too_long_examples_are_dropped_and_counted(caplog):
    examples = [*EXAMPLES, make_example(50, 13), make_example(51, 99)]
    batches = list(make_batches(examples, seed=0, **SETTINGS))
    assert len(sum((contents(b) for b in batches), [])) == len(EXAMPLES)
    assert (
        "longer than 12 tokens, 0 were cut behind a reply and 2 dropped" in caplog.text
    )


def test_without_any_example_that_fits_the_message_says_why():
    with pytest.raises(DataError, match=r"at most 12 tokens \(1 longer ones\)"):
        make_batches([make_example(0, 13)], seed=0, **SETTINGS)


def test_whole_trajectories_are_held_back_whatever_the_order():
    train, held_back = split_examples(EXAMPLES, 0.2, seed=0)
    ids = {e.trajectory_id for e in held_back}
    assert len(ids) == 3  # of 12, rounded up
    assert not ids & {e.trajectory_id for e in train}
    assert len(train) + len(held_back) == len(EXAMPLES)
    again = split_examples(EXAMPLES[::-1], 0.2, seed=0)[1]
    assert {e.trajectory_id for e in again} == ids
    assert {e.trajectory_id for e in split_examples(EXAMPLES, 0.2, seed=1)[1]} != ids
    assert split_examples(EXAMPLES, 0.0, seed=0) == (EXAMPLES, [])


def pieces(batch) -> list[int]:
    """The examples of a packed batch, checked for where their parts lie."""
    found = []
    for row in range(len(batch.tokens_BT)):
        segments_T = batch.segment_ids_BT[row]
        for segment in range(1, segments_T.max() + 1):
            places = np.flatnonzero(segments_T == segment)
            number = int(batch.tokens_BT[row, places[0]]) - 1
            length = len(EXAMPLES[number].tokens_T)
            assert places.tolist() == list(range(places[0], places[0] + length))
            assert (batch.tokens_BT[row, places] == number + 1).all()
            assert batch.positions_BT[row, places].tolist() == list(range(length))
            expected_T = EXAMPLES[number].loss_mask_T
            assert (batch.loss_mask_BT[row, places] == expected_T).all()
            found.append(number + 1)
        assert (batch.tokens_BT[row, segments_T == 0] == PAD).all()
        assert (batch.loss_mask_BT[row, segments_T == 0] == 0).all()
    return found


PACKED = SETTINGS | {"seq_lens": (6, 24), "is_packed": True}


def test_packed_rows_hold_every_example_once_an_epoch():
    dataset = make_batches(EXAMPLES, seed=0, **PACKED)
    twice = [pieces(b) for b in dataset.repeat(2)]
    first, second = twice[: len(dataset)], twice[len(dataset) :]
    assert first != second
    assert Counter(sum(first, [])) == Counter(sum(second, [])) == Counter(range(1, 24))
    assert {b.tokens_BT.shape for b in dataset} == {(4, 24)}
    unpacked = make_batches(EXAMPLES, seed=0, **SETTINGS | {"seq_lens": (6, 24)})
    assert len(dataset) < len(unpacked)


def test_packed_batches_continue_from_a_state_wherever_they_were_killed():
    dataset = make_batches(EXAMPLES, seed=3, **PACKED).repeat(4)
    expected = [b.tokens_BT.tolist() for b in dataset]
    for done in np.random.default_rng(0).integers(0, len(dataset), 5):
        iterator = iter(dataset)
        for _ in range(done):
            next(iterator)
        state = iterator.get_state()
        # Another process: everything is built again.
        again = iter(make_batches(EXAMPLES, seed=3, **PACKED).repeat(4))
        again.set_state(state)
        assert [b.tokens_BT.tolist() for b in again] == expected[done:]
