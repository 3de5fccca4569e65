import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlagent_jax.model import attention


def reference(q_BTNH, k_BSKH, v_BSKH, mask_BTS) -> np.ndarray:
    """Attention of every query on its own, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_BTNH, k_BSKH, v_BSKH))
    B, T, N, H = q.shape
    group = N // k.shape[2]
    out = np.zeros_like(q)
    for b, t, n in np.ndindex(B, T, N):
        scores = k[b, :, n // group] @ q[b, t, n] / np.sqrt(H)
        seen = np.asarray(mask_BTS[b, t])
        if seen.any():
            weights = np.exp(scores[seen] - scores[seen].max())
            out[b, t, n] = weights @ v[b, seen, n // group] / weights.sum()
    return out


def random_qkv(T: int, S: int, N: int, K: int):
    keys = jax.random.split(jax.random.key(T + S + N), 3)
    shapes = [(2, T, N, 4), (2, S, K, 4), (2, S, K, 4)]
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("implementation", ["blocked", "xla"])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(3, 3), (6, 2), (7, 1)])
def test_attention_within_segments_equals_a_loop(
    implementation, num_heads, num_kv_heads
):
    # 97 tokens: one more than a block, so that blocks have different sizes.
    T = 97
    q, k, v = random_qkv(T, T, num_heads, num_kv_heads)
    segment_ids_BT = jnp.stack(
        [jnp.repeat(jnp.array([1, 2]), T)[T - 60 : 2 * T - 60]] * 2
    )
    segment_ids_BT = segment_ids_BT.at[1, 90:].set(0)
    out = attention.attend_within(
        q, k, v, segment_ids_BT, implementation=implementation
    )
    same_BTT = segment_ids_BT[:, :, None] == segment_ids_BT[:, None]
    expected = reference(q, k, v, same_BTT & np.tril(np.ones((T, T), bool)))
    is_real_BT = np.asarray(segment_ids_BT != 0)
    np.testing.assert_allclose(out[is_real_BT], expected[is_real_BT], atol=1e-5)
    assert np.all(np.isfinite(out))


@pytest.mark.parametrize(
    "lengths", [[300], [7, 31, 1, 100, 64, 96], [250, 45], [1] * 40 + [258]]
)
def test_long_packed_rows_and_their_gradients_equal_those_of_the_whole_matrix(lengths):
    """300 tokens, which blocks do not divide; what is missing at the end is padding."""
    T = 300
    q, k, v = random_qkv(T, T, 4, 2)
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    segment_ids_T = np.pad(ids, (0, T - len(ids)))
    segment_ids_BT = jnp.asarray(np.stack([segment_ids_T, np.ones(T, int)]))
    weights_BTNH = jax.random.normal(jax.random.key(0), q.shape)
    weights_BTNH = weights_BTNH * (segment_ids_BT != 0)[..., None, None]

    def weighted_sum(q, k, v, implementation):
        out_BTNH = attention.attend_within(
            q, k, v, segment_ids_BT, implementation=implementation
        )
        return jnp.sum(out_BTNH * weights_BTNH)

    results = {
        name: jax.value_and_grad(weighted_sum, argnums=(0, 1, 2))(q, k, v, name)
        for name in ("blocked", "xla")
    }
    for ours, theirs in zip(*map(jax.tree.leaves, results.values()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_auto_takes_the_blocked_form_on_cpu():
    q, k, v = random_qkv(8, 8, 2, 1)
    ones_BT = jnp.ones((2, 8), jnp.int32)
    auto = attention.attend_within(q, k, v, ones_BT)
    blocked = attention.attend_within(q, k, v, ones_BT, implementation="blocked")
    np.testing.assert_array_equal(auto, blocked)
