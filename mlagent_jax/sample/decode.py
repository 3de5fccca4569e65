"""Prefill and decode as pure functions on a batch of rows; no policy of who sits where.

Each row holds one request. `prefill` puts all but the last prompt token of some rows
into the cache; `decode` then feeds each live row its newest token (first that last
prompt token) and draws the next one. What a row yields depends on its own tokens
and key alone, bit for bit, whoever shares the batch:

- Prompts are prefilled one at a time in chunks of a fixed size at fixed positions,
  so that keys and values of a token depend on it and the tokens before it only.
  This is also why a prefix can be copied from another row instead of computed.
- A request says itself how many of its tokens are a prefix that others share. Those lie
  in a store that all of its rows read (`attend_prefixes`), also if it is the only one.
- Token t of a request is drawn with `fold_in(key of the request, t)`.
- A decode step always runs over all rows; those that are finished write garbage
  behind their live positions only.
- Requests enter between two calls of `decode`, so token t is always as many steps away
  from the one before which newer tokens were last moved into the cache.

Axes: B rows, P shared prefixes, T token positions (of a prompt or a reply), R rows to
prefill, V vocabulary, C tokens of a chunk.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlagent_jax.config import ModelConfig
from mlagent_jax.model import cache as cache_lib
from mlagent_jax.model import decoder
from mlagent_jax.model.cache import (
    KVCache,
    Prefix,
    Readers,
    RecentTokens,
    SharedPrefixes,
    init_cache,
)
from mlagent_jax.model.cache_writes import copy_prefix, keep_recent
from mlagent_jax.model.decoder import DecoderWeights
from mlagent_jax.sample.methods import SamplingMethod


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeState:
    """All rows between two calls.

    Attributes:
      cache: keys and values of prompt and reply, without the newest token and the
        shared prefix.
      prefixes: those of P shared prefixes; None if nothing is shared.
      tokens_B: int32, the newest token of each row: the next input.
      counts_B: int32, reply tokens drawn so far.
      is_live_B: bool, False for an empty row or a finished reply.
      key_data_B2: uint32, threefry key of each row's request.
      reply_BT: int32, reply tokens; T is the longest reply, garbage behind counts_B.
      logprobs_BT: float32, behaviour log-probability of each, likewise.
    """

    cache: KVCache
    prefixes: KVCache | None
    tokens_B: jax.Array
    counts_B: jax.Array
    is_live_B: jax.Array
    key_data_B2: jax.Array
    reply_BT: jax.Array
    logprobs_BT: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where parts of R prompts go, and how much of them is in the cache already.

    Attributes:
      rows_R: int32, row of the cache that a part gets; behind the last one: none.
      sources_R: int32, row that starts with the same tokens.
      num_copied_R: int32, how many to copy from there; a multiple of the chunk size, or
        the whole part.
    """

    rows_R: jax.Array
    sources_R: jax.Array
    num_copied_R: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Admission:
    """Requests that take over rows, in this order.

    Attributes:
      num: int32 scalar, how many of the R entries are real.
      tokens_RT: int32 prompts; T is a multiple of the chunk size.
      lengths_R: int32, tokens of each prompt, at least 1.
      num_shared_R: int32, how many of them are its shared prefix; a multiple of the
        chunk size, or all but the last.
      key_data_R2: uint32, threefry key of each request.
      rows: where the rest goes, all but the last token.
      prefixes: where the shared prefixes go; None if nothing is shared.
    """

    num: jax.Array
    tokens_RT: jax.Array
    lengths_R: jax.Array
    num_shared_R: jax.Array
    key_data_R2: jax.Array
    rows: Places
    prefixes: Places | None


def init_state(
    cfg: ModelConfig,
    num_rows: int,
    *,
    capacity: int,
    max_reply_tokens: int,
    num_prefixes: int = 0,
    prefix_capacity: int = 0,
    chunk_size: int = 1,
    dtype: DTypeLike | None = None,
    key_axis: int = 2,
) -> DecodeState:
    """Returns a batch without requests.

    Args:
      cfg: the model.
      num_rows: requests that are decoded together.
      capacity: tokens of prompt and reply, without a shared prefix, that fit in a row.
      max_reply_tokens: where a reply is cut.
      num_prefixes: shared prefixes that are kept.
      prefix_capacity: tokens of one.
      chunk_size: of `prefill`.
      dtype: of the cache; None takes the model's compute dtype.
      key_axis: of the positions in keys, see `model.cache.key_axis_on`.
    """

    def empty(batch: int, capacity: int) -> KVCache:
        return init_cache(
            cfg, batch, capacity, dtype, chunk_size=chunk_size, key_axis=key_axis
        )

    return DecodeState(
        cache=empty(num_rows, capacity),
        prefixes=empty(num_prefixes, prefix_capacity) if num_prefixes else None,
        tokens_B=jnp.zeros(num_rows, jnp.int32),
        counts_B=jnp.zeros(num_rows, jnp.int32),
        is_live_B=jnp.zeros(num_rows, bool),
        key_data_B2=jnp.zeros((num_rows, 2), jnp.uint32),
        reply_BT=jnp.zeros((num_rows, max_reply_tokens), jnp.int32),
        logprobs_BT=jnp.zeros((num_rows, max_reply_tokens), jnp.float32),
    )


def grow(
    state: DecodeState, capacity: int, prefix_capacity: int = 0, chunk_size: int = 1
) -> DecodeState:
    """Returns `state` with room for as many tokens a row and a prefix, or more."""

    def grow_cache(cache: KVCache, capacity: int) -> KVCache:
        if capacity <= cache.capacity:
            return cache
        return cache_lib.grow(cache, capacity, chunk_size=chunk_size)

    prefixes = state.prefixes
    return dataclasses.replace(
        state,
        cache=grow_cache(state.cache, capacity),
        prefixes=None if prefixes is None else grow_cache(prefixes, prefix_capacity),
    )


def prefill(
    cfg: ModelConfig,
    weights: DecoderWeights,
    state: DecodeState,
    admission: Admission,
    *,
    chunk_size: int,
) -> DecodeState:
    """Returns `state` with the admitted requests ready to be decoded.

    Args:
      cfg: the model.
      weights: the sampler's copy.
      state: rows before; the rows to be filled must not be live.
      admission: the requests.
      chunk_size: tokens of one forward pass.
    """

    def admit(index: jax.Array, state: DecodeState) -> DecodeState:
        return _admit(cfg, weights, state, admission, index, chunk_size)

    return jax.lax.fori_loop(0, admission.num, admit, state)


def _admit(
    cfg: ModelConfig,
    weights: DecoderWeights,
    state: DecodeState,
    admission: Admission,
    index: jax.Array,
    chunk_size: int,
) -> DecodeState:
    tokens_T = admission.tokens_RT[index]
    num_cached = admission.lengths_R[index] - 1
    num_shared = admission.num_shared_R[index]

    def fill(
        cache: KVCache,
        places: Places,
        first: jax.Array | int,
        num_tokens: jax.Array,
        prefix: Prefix | None = None,
    ) -> KVCache:
        """Puts `num_tokens` of the prompt, from `first` on, into their place."""
        row, num_copied = places.rows_R[index], places.num_copied_R[index]

        def run_chunk(chunk: jax.Array, cache: KVCache) -> KVCache:
            start = chunk * chunk_size
            tokens_C = jax.lax.dynamic_slice(tokens_T, (first + start,), (chunk_size,))
            return decoder.prefill_chunk(
                cfg, weights, cache, tokens_C, row=row, start=start, prefix=prefix
            )

        cache = copy_prefix(cache, places.sources_R[index], row, num_copied)
        # A part copied whole has nothing left to run, though it is no multiple.
        first_chunk = -(-num_copied // chunk_size)
        end_chunk = -(-num_tokens // chunk_size)
        cache = jax.lax.fori_loop(first_chunk, end_chunk, run_chunk, cache)
        lengths_B = cache.lengths_B.at[row].set(num_tokens, mode="drop")
        return dataclasses.replace(cache, lengths_B=lengths_B)

    prefixes, prefix = state.prefixes, None
    if prefixes is not None and admission.prefixes is not None:
        prefixes = fill(prefixes, admission.prefixes, 0, num_shared)
        prefix_row = admission.prefixes.rows_R[index]
        prefix = Prefix(cache=prefixes, row=prefix_row, length=num_shared)
    num_own = num_cached - num_shared
    cache = fill(state.cache, admission.rows, num_shared, num_own, prefix)
    row = admission.rows.rows_R[index]
    return dataclasses.replace(
        state,
        cache=cache,
        prefixes=prefixes,
        tokens_B=state.tokens_B.at[row].set(tokens_T[num_cached]),
        counts_B=state.counts_B.at[row].set(0),
        is_live_B=state.is_live_B.at[row].set(True),
        key_data_B2=state.key_data_B2.at[row].set(admission.key_data_R2[index]),
    )


def decode(
    cfg: ModelConfig,
    weights: DecoderWeights,
    state: DecodeState,
    keep_B: jax.Array,
    readers: Readers | None = None,
    *,
    method: SamplingMethod,
    end_ids: tuple[int, ...],
    num_steps: int,
) -> DecodeState:
    """Returns `state` after up to `num_steps` more tokens in every live row.

    A row is finished by an end token, which is part of its reply, or by a full
    reply. The loop ends early when no row is live.

    Args:
      cfg: the model.
      weights: the sampler's copy.
      state: rows before.
      keep_B: bool, False ends a row whose reply the host found complete.
      readers: which row reads which shared prefix; None if nothing is shared.
      method: how tokens are drawn.
      end_ids: tokens that end a reply.
      num_steps: most steps of this call.
    """
    cache, counts_B, shared = state.cache, state.counts_B, None
    if state.prefixes is not None and readers is not None:
        shared = SharedPrefixes(cache=state.prefixes, readers=readers)
    state = dataclasses.replace(state, is_live_B=state.is_live_B & keep_B)

    def is_running(carry: tuple[RecentTokens, DecodeState]) -> jax.Array:
        recent, state = carry
        return (recent.count < num_steps) & jnp.any(state.is_live_B)

    def run_step(
        carry: tuple[RecentTokens, DecodeState],
    ) -> tuple[RecentTokens, DecodeState]:
        return _decode_step(cfg, weights, *carry, shared, method, end_ids)

    recent = cache_lib.init_recent(cfg, cache, num_steps, shared)
    recent, state = jax.lax.while_loop(is_running, run_step, (recent, state))
    cache = keep_recent(cache, recent, state.counts_B - counts_B)
    return dataclasses.replace(state, cache=cache)


def _decode_step(
    cfg: ModelConfig,
    weights: DecoderWeights,
    recent: RecentTokens,
    state: DecodeState,
    shared: SharedPrefixes | None,
    method: SamplingMethod,
    end_ids: tuple[int, ...],
) -> tuple[RecentTokens, DecodeState]:
    is_live_B = state.is_live_B
    hidden_BD, recent = decoder.decode_tokens(
        cfg,
        weights,
        state.cache,
        recent,
        state.tokens_B,
        is_live_B,
        shared=shared,
    )
    logits_BV = decoder.unembed(weights, hidden_BD)
    keys_B = jax.random.wrap_key_data(state.key_data_B2, impl="threefry2x32")
    tokens_B, logprobs_B = method.sample(
        logits_BV, jax.vmap(jax.random.fold_in)(keys_B, state.counts_B)
    )
    T = state.reply_BT.shape[1]
    is_new_BT = is_live_B[:, None] & (jnp.arange(T) == state.counts_B[:, None])
    counts_B = state.counts_B + is_live_B
    is_end_B = jnp.any(tokens_B[:, None] == jnp.array(end_ids, jnp.int32), axis=1)
    return recent, dataclasses.replace(
        state,
        tokens_B=jnp.where(is_live_B, tokens_B, state.tokens_B),
        counts_B=counts_B,
        is_live_B=is_live_B & ~is_end_B & (counts_B < T),
        reply_BT=jnp.where(is_new_BT, tokens_B[:, None], state.reply_BT),
        logprobs_BT=jnp.where(is_new_BT, logprobs_B[:, None], state.logprobs_BT),
    )
