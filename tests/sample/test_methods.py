import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.sample.methods import SamplingMethod

V = 12
NUM_DRAWS = 20_000


def reference_probs(logits_V, temperature=1.0, top_k=0, top_p=1.0) -> np.ndarray:
    """The distribution to draw from, one token after the other, in float64."""
    weights = np.exp(np.asarray(logits_V, np.float64) / temperature)
    order = np.argsort(-weights, kind="stable")
    if top_k:
        weights[order[top_k:]] = 0.0
    mass = 0.0
    for token in order:
        if mass >= top_p * weights.sum() - 1e-12:
            weights[token] = 0.0
        mass += weights[token]
    return weights / weights.sum()


def draw(method: SamplingMethod, logits_V, num_draws=NUM_DRAWS):
    keys_B = jax.random.split(jax.random.key(7), num_draws)
    logits_BV = jnp.broadcast_to(logits_V, (num_draws, len(logits_V)))
    tokens_B, logprobs_B = jax.jit(method.sample)(logits_BV, keys_B)
    return np.asarray(tokens_B), np.asarray(logprobs_B)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 2.0},
        {"top_k": 4},
        {"top_k": 1},
        {"top_k": V},
        {"top_p": 0.7},
        {"top_p": 1e-6},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.8},
    ],
    ids=str,
)
def test_tokens_are_drawn_with_the_probability_that_is_reported(settings):
    logits_V = 2 * jax.random.normal(jax.random.key(3), (V,))
    probs_V = reference_probs(logits_V, **settings)
    tokens_B, logprobs_B = draw(SamplingMethod(**settings), logits_V)
    counts_V = np.bincount(tokens_B, minlength=V)
    assert np.all(counts_V[probs_V == 0] == 0)
    sigma_V = np.sqrt(NUM_DRAWS * probs_V * (1 - probs_V))
    assert np.all(np.abs(counts_V - NUM_DRAWS * probs_V) <= 4 * sigma_V + 1e-3)
    np.testing.assert_allclose(logprobs_B, np.log(probs_V[tokens_B]), atol=1e-5)


def test_greedy_takes_the_most_likely_token_and_reports_the_models_logprob():
    logits_BV = jax.random.normal(jax.random.key(0), (5, V))
    keys_B = jax.random.split(jax.random.key(1), 5)
    tokens_B, logprobs_B = SamplingMethod(temperature=0.0).sample(logits_BV, keys_B)
    np.testing.assert_array_equal(tokens_B, np.argmax(logits_BV, axis=1))
    expected_B = [np.log(reference_probs(row).max()) for row in logits_BV]
    np.testing.assert_allclose(logprobs_B, expected_B, atol=1e-5)


def test_greedy_takes_the_first_of_equals_and_stays_in_the_vocabulary():
    nan, inf = np.nan, np.inf
    logits_BV = jnp.array([[1.0, 3.0, 3.0], [-inf, -inf, 2.0], [nan, 0.0, 1.0]])
    method = SamplingMethod(temperature=0.0)
    tokens_B, _ = method.sample(logits_BV, jax.random.split(jax.random.key(0), 3))
    np.testing.assert_array_equal(tokens_B[:2], [1, 2])
    assert 0 <= tokens_B[2] < 3


def test_a_row_depends_on_its_own_logits_and_key_only():
    method = SamplingMethod(top_p=0.9)
    logits_BV = jax.random.normal(jax.random.key(0), (6, V))
    keys_B = jax.random.split(jax.random.key(1), 6)
    tokens_B, logprobs_B = method.sample(logits_BV, keys_B)
    order_B = jnp.array([4, 2, 0, 5, 1, 3])
    moved_B, moved_logprobs_B = method.sample(logits_BV[order_B], keys_B[order_B])
    np.testing.assert_array_equal(moved_B, tokens_B[order_B])
    np.testing.assert_array_equal(moved_logprobs_B, logprobs_B[order_B])


def test_tied_tokens_do_not_make_top_k_keep_more_than_k():
    tokens_B, _ = draw(SamplingMethod(top_k=2), jnp.zeros(V), num_draws=500)
    assert sorted(set(tokens_B.tolist())) == [0, 1]


def test_impossible_tokens_are_never_drawn_even_at_the_edges():
    logits_V = jnp.full(V, -jnp.inf).at[4].set(0.0).at[5].set(-20.0)
    tokens_B, _ = draw(SamplingMethod(), logits_V)
    assert set(tokens_B.tolist()) <= {4, 5}


def test_what_is_switched_off_is_not_computed():
    def compiled(method: SamplingMethod) -> str:
        logits_BV = jnp.zeros((2, V))
        keys_B = jax.random.split(jax.random.key(0), 2)
        return jax.jit(method.sample).lower(logits_BV, keys_B).as_text()

    assert "top_k" not in compiled(SamplingMethod(temperature=0.5, top_k=V))
    assert "threefry" not in compiled(SamplingMethod(temperature=0.0))
    assert "top_k" in compiled(SamplingMethod(top_p=0.9))
