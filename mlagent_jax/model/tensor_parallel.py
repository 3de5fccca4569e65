"""Products of a tensor-parallel block, and the only collectives that they need.

Between blocks, activations are split by token over the mesh axis `tensor`; within one,
by head or MLP column. `fan_out` enters a block: it gathers the tokens once for all
its products, and the transpose of that gathering is one reduce-scatter. `fan_in`
leaves it: a reduce-scatter, transposed to one gathering. Left to itself the compiler
exchanges MLP activations and gathers whole weights in the backward pass; what it makes
of a reduce-scatter: BUILD_NOTES.md, "TPU programs, compiled".

Kernels are gathered along `fsdp` here too, where they are used, so that `jax.shard_map`
has nothing left to decide.

Axes: B rows, T tokens, D model width, C columns (heads or MLP width) and what follows
them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mlagent_jax.parallel.mesh import DATA, FSDP, TENSOR

_ROWS = (DATA, FSDP)


def is_split(x_BTD: jax.Array) -> bool:
    """Returns whether the mesh in use splits these tokens over `tensor`."""
    tensor = _num_shards()
    return tensor > 1 and x_BTD.shape[1] % tensor == 0


def share_columns(x: jax.Array, axis: int) -> jax.Array:
    """Returns `x` with each column repeated if several devices share it.

    Columns are key/value heads then; each device gets the one that its query heads
    read.

    Args:
      x: kernel or bias.
      axis: of its columns.
    """
    return jnp.repeat(x, max(1, _num_shards() // x.shape[axis]), axis=axis)


def fan_out(x_BTD: jax.Array, kernels_DC: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the product with each kernel, (B, T, C, ...), split by column.

    Args:
      x_BTD: activations, split by token.
      kernels_DC: (D, C, ...) each, D split over `fsdp`; `tensor` divides C.
    """

    def project(x_BTD: jax.Array, kernels_DC: list[jax.Array]) -> list[jax.Array]:
        x_BTD = jax.lax.all_gather(x_BTD, TENSOR, axis=1, tiled=True)
        B, T, D = x_BTD.shape
        return [
            (x_BTD @ kernel_DC.reshape(D, -1)).reshape(B, T, *kernel_DC.shape[1:])
            for kernel_DC in (_gather(kernel_DC, 0) for kernel_DC in kernels_DC)
        ]

    return jax.shard_map(
        project,
        in_specs=(P(_ROWS, TENSOR), P(FSDP, TENSOR)),
        out_specs=P(_ROWS, None, TENSOR),
    )(x_BTD, list(kernels_DC))


def fan_in(x_BTC: jax.Array, kernel_CD: jax.Array) -> jax.Array:
    """Returns the product out_BTD, split by token.

    Args:
      x_BTC: (B, T, C, ...), split by column.
      kernel_CD: (C, ..., D), D split over `fsdp`.
    """
    last = kernel_CD.ndim - 1

    def project(x_BTC: jax.Array, kernel_CD: jax.Array) -> jax.Array:
        B, T = x_BTC.shape[:2]
        kernel_CD = _gather(kernel_CD, last)
        out_BTD = x_BTC.reshape(B, T, -1) @ kernel_CD.reshape(-1, kernel_CD.shape[-1])
        return jax.lax.psum_scatter(out_BTD, TENSOR, scatter_dimension=1, tiled=True)

    return jax.shard_map(
        project,
        in_specs=(P(_ROWS, None, TENSOR), P(TENSOR, *(None,) * (last - 1), FSDP)),
        out_specs=P(_ROWS, TENSOR),
    )(x_BTC, kernel_CD)


def _gather(kernel: jax.Array, axis: int) -> jax.Array:
    """Returns a kernel whole along `fsdp`; its gradient is reduced and scattered."""
    kernel = jax.lax.pcast(kernel, DATA, to="varying")
    return jax.lax.all_gather(kernel, FSDP, axis=axis, tiled=True)


def _num_shards() -> int:
    return jax.sharding.get_abstract_mesh().shape.get(TENSOR, 1)
