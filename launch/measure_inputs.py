"""Arguments for `run_programs`' programs: random weights, full batches, full caches.

What a program costs must not depend on what stands in its arrays, but three things do
change it: rows that end early, keys that are not live, and matrices of zeros, at which
a chip draws less power and runs faster than at a model's weights. Hence every row is
full and live, and weights are drawn. How a program is called again with what it gave
back is here, too.

Axis letters: B rows, R rows to prefill, T tokens, P prefixes, N rows of each.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlagent_jax.model.cache import Readers
from mlagent_jax.parallel.aot import Program
from mlagent_jax.parallel.sharding import place
from mlagent_jax.sample.decode import Admission, DecodeState, Places

_STD = 0.02  # of weights
_NUM_TOKENS = 100  # different ids in a prompt; every vocabulary has them


def first_arguments(program: Program) -> tuple[Any, ...]:
    """Returns arrays for `program`, where its arguments say that they live."""
    return tuple(_make(argument, program) for argument in program.arguments)


def next_arguments(
    program: Program, arguments: tuple[Any, ...], result: Any
) -> tuple[Any, ...]:
    """Returns arguments for the next call: what was used up comes from the result.

    Args:
      program: that was called.
      arguments: it was called with.
      result: what it returned.
    """
    if program.name == "score":
        return arguments
    if isinstance(result, DecodeState):
        state = _full_rows(result, program)
        return arguments[0], state, *arguments[2:]
    return result[0], *arguments[1:]


def _make(argument: Any, program: Program) -> Any:
    if isinstance(argument, DecodeState):
        return _full_rows(_random_tree(argument), program)
    if isinstance(argument, Admission):
        return _admission(argument, program)
    if isinstance(argument, Readers):
        return _readers(argument, num_rows=program.settings["num_slots"])
    fields = getattr(argument, "__dict__", {})
    if "tokens_BT" in fields:
        rows = {name: _row_values(name, leaf) for name, leaf in fields.items()}
        return _placed(type(argument)(**rows), argument)
    return _random_tree(argument)


def _random_tree(tree: Any) -> Any:
    """Returns normal numbers for floats, zeros for the rest and what optax keeps."""

    def make(path: Any, leaf: Any) -> jax.Array:
        is_kept = "opt_state" in jax.tree_util.keystr(path)
        if is_kept or not jnp.issubdtype(leaf.dtype, jnp.floating):
            value = leaf.dtype == bool  # rows that are kept
            return jnp.full(leaf.shape, value, leaf.dtype, device=leaf.sharding)
        key = jax.random.key(len(jax.tree_util.keystr(path)))
        draw = jax.jit(_normal, static_argnums=(1, 2), out_shardings=leaf.sharding)
        return draw(key, leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(make, tree)


def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return (_STD * jax.random.normal(key, shape)).astype(dtype)


def _row_values(name: str, leaf: Any) -> np.ndarray:
    """Returns a field of a batch record: rows without padding, all tokens chosen."""
    if name == "tokens_BT":
        return _tokens(leaf)
    if name == "positions_BT":
        positions_T = np.arange(leaf.shape[1], dtype=leaf.dtype)
        return np.broadcast_to(positions_T, leaf.shape)
    return np.ones(leaf.shape, leaf.dtype)


def _tokens(leaf: Any) -> np.ndarray:
    ids = np.random.default_rng(0).integers(1, _NUM_TOKENS, leaf.shape)
    return ids.astype(leaf.dtype)


def _full_rows(state: DecodeState, program: Program) -> DecodeState:
    """Returns the state with every row live and as long as one more call allows."""

    def filled(cache: Any, length: int) -> Any:
        lengths_B = jnp.full_like(cache.lengths_B, length)
        return dataclasses.replace(cache, lengths_B=lengths_B)

    steps = program.call.tokens // program.settings["num_slots"]
    is_decode = program.name == "decode"
    length = program.settings["capacity"] - (steps if is_decode else 0)
    prefixes = state.prefixes
    if prefixes is not None:
        prefixes = filled(prefixes, program.settings["shared_tokens"])
    return dataclasses.replace(
        state,
        cache=filled(state.cache, length),
        prefixes=prefixes,
        counts_B=jnp.zeros_like(state.counts_B),
        is_live_B=jnp.full_like(state.is_live_B, is_decode),
    )


def _admission(argument: Admission, program: Program) -> Admission:
    R = len(argument.lengths_R)
    length = program.call.tokens // R
    shared = min(program.settings["shared_tokens"], length - 1)
    rows_R = np.arange(R, dtype=np.int32)
    zeros_R = np.zeros(R, np.int32)
    prefixes = None
    if argument.prefixes is not None:
        # The first of those that share a prefix fills it, the others find it there.
        readers = -(-R // program.settings["num_prefixes"])
        prefixes = _places(
            rows_R // readers, np.where(rows_R % readers, shared, 0).astype(np.int32)
        )
    values: dict[str, Any] = {
        "num": np.int32(R),
        "tokens_RT": _tokens(argument.tokens_RT),
        "lengths_R": np.full(R, length, np.int32),
        "num_shared_R": np.full(R, shared, np.int32),
        "key_data_R2": np.ones((R, 2), np.uint32),
    }
    made = Admission(**values, rows=_places(rows_R, zeros_R), prefixes=prefixes)
    return _placed(made, argument)


def _places(rows_R: np.ndarray, num_copied_R: np.ndarray) -> Places:
    values: dict[str, Any] = {
        "rows_R": rows_R,
        "sources_R": rows_R,
        "num_copied_R": num_copied_R,
    }
    return Places(**values)


def _readers(argument: Readers, *, num_rows: int) -> Readers:
    """Returns rows that read the prefixes in order, as many each as there is room."""
    P, N = argument.rows_PN.shape
    places = np.arange(P * N, dtype=np.int32)
    values: dict[str, Any] = {
        "rows_PN": np.minimum(places, num_rows - 1).reshape(P, N),
        "places_B": np.minimum(np.arange(num_rows), P * N).astype(np.int32),
    }
    return _placed(Readers(**values), argument)


def _placed(tree: Any, argument: Any) -> Any:
    return place(tree, jax.tree.map(lambda leaf: leaf.sharding, argument))
