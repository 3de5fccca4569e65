"""What the output layer says about given tokens, in chunks, on a mesh or without.

The loop over chunks of tokens keeps the logits of one chunk at a time, forward and
backward. On a mesh it runs under `jax.shard_map`: every device has its rows and its
part of the vocabulary, so that the table is gathered once before the loop and its
gradient summed over devices once after it, not in every chunk; a softmax over the
split vocabulary needs sums of a few numbers a token.

Axes: B rows, T tokens, D model width, V vocabulary, C chunks, U tokens a chunk.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mlagent_jax.parallel.mesh import DATA, FSDP, TENSOR

# Each chunk reads the whole table and adds to its whole gradient, V x D, beside logits
# of tokens x V. Of 2,048 tokens the products take longer than that on TPU and GPU
# (BUILD_NOTES.md, "TPU programs"); of many more than D, a CPU's caches hold no chunk.
_CHUNK_TOKENS = 2048
_LEAST_CHUNK_SIZE = 128


def score_hidden(
    hidden_BTD: jax.Array,
    table_DV: jax.Array,
    tokens_BT: jax.Array,
    *,
    temperature: float,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns float32 (logprobs_BT, entropy_BT) of one token a position.

    Args:
      hidden_BTD: final hidden states, in the compute dtype.
      table_DV: the output layer, in any dtype; gradients are summed in float32.
      tokens_BT: the token at each position whose log-probability is asked for.
      temperature: logits are divided by it.
      chunk_size: positions of every row whose logits exist at once; None takes as
        many as make 2,048 tokens on each device, or 2 D if fewer; at least 128.
    """
    score = partial(_score_shard, temperature=temperature, chunk_size=chunk_size)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return score(hidden_BTD, table_DV, tokens_BT, is_split=False)
    rows = PartitionSpec((DATA, FSDP))
    return jax.shard_map(
        partial(score, is_split=True),
        in_specs=(rows, PartitionSpec(FSDP, TENSOR), rows),
        out_specs=(rows, rows),
    )(hidden_BTD, table_DV, tokens_BT)


def score_logits(
    logits_BTV: jax.Array, tokens_BT: jax.Array, axis: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns (logprobs_BT, entropy_BT) of tokens under float32 logits.

    Args:
      logits_BTV: of the whole vocabulary, or of this device's part of it.
      tokens_BT: token ids of the whole vocabulary.
      axis: mesh axis over which the vocabulary is split, within `jax.shard_map`.
    """
    V = logits_BTV.shape[-1]

    def total(x_BT: jax.Array) -> jax.Array:
        return x_BT if axis is None else jax.lax.psum(x_BT, axis)

    first = 0 if axis is None else jax.lax.axis_index(axis) * V
    max_BT = jax.lax.stop_gradient(jnp.max(logits_BTV, axis=-1))
    if axis is not None:
        max_BT = jax.lax.pmax(max_BT, axis)
    shifted_BTV = logits_BTV - max_BT[..., None]
    log_sum_BT = jnp.log(total(jnp.sum(jnp.exp(shifted_BTV), axis=-1)))
    # A masked sum instead of a gather: its gradient is no scatter.
    is_token_BTV = first + jnp.arange(V) == tokens_BT[..., None]
    chosen_BT = total(jnp.sum(jnp.where(is_token_BTV, shifted_BTV, 0.0), axis=-1))
    probs_BTV = jnp.exp(shifted_BTV - log_sum_BT[..., None])
    mean_BT = total(jnp.sum(probs_BTV * shifted_BTV, axis=-1))
    return chosen_BT - log_sum_BT, log_sum_BT - mean_BT


def _score_shard(
    hidden_BTD: jax.Array,
    table_DV: jax.Array,
    tokens_BT: jax.Array,
    *,
    temperature: float,
    chunk_size: int | None,
    is_split: bool,
) -> tuple[jax.Array, jax.Array]:
    table_DV = whole_table(table_DV) if is_split else table_DV.astype(jnp.float32)

    @jax.checkpoint
    def score_chunk(
        chunk: tuple[jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        hidden_BUD, tokens_BU = chunk
        logits_BUV = chunk_logits(hidden_BUD, table_DV) / temperature
        return score_logits(logits_BUV, tokens_BU, TENSOR if is_split else None)

    if chunk_size is None:
        chunk_size = default_chunk_size(hidden_BTD)
    chunks = (
        split_chunks(hidden_BTD, chunk_size),
        split_chunks(tokens_BT, chunk_size),
    )
    logprobs_CBU, entropy_CBU = jax.lax.map(score_chunk, chunks)
    T = tokens_BT.shape[1]
    return join_chunks(logprobs_CBU, T), join_chunks(entropy_CBU, T)


def chunk_logits(hidden_BUD: jax.Array, table_DV: jax.Array) -> jax.Array:
    """Returns float32 logits_BUV."""
    B, U, D = hidden_BUD.shape
    logits = jnp.dot(
        hidden_BUD.reshape(B * U, D),
        table_DV.astype(hidden_BUD.dtype),
        preferred_element_type=jnp.float32,
    )
    return logits.reshape(B, U, -1)


def whole_table(table_DV: jax.Array) -> jax.Array:
    """Returns a device's part of the vocabulary, whole along D, in float32."""
    # Float32 until a chunk uses it: what the chunks add to its gradient is then summed
    # in float32, within a device and between devices.
    table_DV = table_DV.astype(jnp.float32)
    table_DV = jax.lax.all_gather(table_DV, FSDP, axis=0, tiled=True)
    return jax.lax.pcast(table_DV, DATA, to="varying")


def default_chunk_size(hidden_BTD: jax.Array) -> int:
    """Returns how many positions of every row make a chunk, see `score_hidden`."""
    num_tokens = min(_CHUNK_TOKENS, 2 * hidden_BTD.shape[-1])
    return max(_LEAST_CHUNK_SIZE, -(-num_tokens // len(hidden_BTD)))


def split_chunks(x_BT: jax.Array, chunk_size: int) -> jax.Array:
    """Returns x[C, B, U, ...]: the token axis cut in chunks, the last one padded."""
    B, T = x_BT.shape[:2]
    num_chunks = -(-T // chunk_size)
    U = -(-T // num_chunks)
    pad = [(0, 0), (0, num_chunks * U - T)] + [(0, 0)] * (x_BT.ndim - 2)
    chunked = jnp.pad(x_BT, pad).reshape(B, num_chunks, U, *x_BT.shape[2:])
    return jnp.moveaxis(chunked, 1, 0)


def join_chunks(x_CBU: jax.Array, num_tokens: int) -> jax.Array:
    """Returns x[B, T, ...] of `split_chunks`' result, without its padding."""
    B = x_CBU.shape[1]
    x_BCU = jnp.moveaxis(x_CBU, 0, 1)
    return x_BCU.reshape(B, -1, *x_CBU.shape[3:])[:, :num_tokens]
