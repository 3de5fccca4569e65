import numpy as np

from mlagent_jax.sample.prefixes import PrefixTable


def prompt(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def test_an_empty_table_shares_nothing():
    table = PrefixTable(3, 16, 4)
    assert table.find(prompt(1, 2, 3))[1] == 0


def test_an_identical_prompt_is_shared_up_to_its_last_token():
    table = PrefixTable(3, 16, 4)
    table.put(1, prompt(1, 2, 3, 4, 5, 6))
    assert table.find(prompt(1, 2, 3, 4, 5, 6)) == (1, 5)
    # The last token may differ: it is not cached, a decode step feeds it.
    assert table.find(prompt(1, 2, 3, 4, 5, 9)) == (1, 5)


def test_a_common_prefix_is_shared_in_whole_chunks_from_the_best_row():
    table = PrefixTable(3, 16, 4)
    table.put(0, prompt(1, 2, 3, 4, 5, 0, 0, 0, 0, 0))
    table.put(2, prompt(1, 2, 3, 4, 5, 6, 7, 8, 9, 9))
    assert table.find(prompt(1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7)) == (2, 8)
    assert table.find(prompt(1, 2, 3, 0, 0, 0))[1] == 0


def test_a_shorter_prompt_overwrites_all_of_a_longer_one():
    table = PrefixTable(1, 16, 4)
    table.put(0, prompt(1, 2, 3, 4, 5, 6))
    table.put(0, prompt(7, 8))
    assert table.find(prompt(1, 2, 3, 4, 5, 6))[1] == 0


def test_clear_forgets_every_row():
    table = PrefixTable(1, 16, 4)
    table.put(0, prompt(1, 2, 3))
    table.clear()
    assert table.find(prompt(1, 2, 3))[1] == 0


def test_a_prompt_of_one_token_needs_nothing():
    table = PrefixTable(2, 16, 4)
    assert table.find(prompt(1)) == (0, 0)
