"""Attention by kernels that the compiler cannot partition: one call a shard.

Axes: B rows, T tokens, N query heads, K key/value heads, H head width.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mlagent_jax.parallel.mesh import DATA, FSDP, TENSOR

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def attend_shards(
    attend: Attend,
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_ids_BT: jax.Array,
) -> jax.Array:
    """Returns out_BTNH: rows split over (data, fsdp), heads over tensor.

    Where `tensor` exceeds the number of key/value heads, each of them is repeated for
    the shards that share it. Without a mesh in use there is one shard.

    Args:
      attend: (q, k, v, segment ids) of a shard -> its attention output.
      q_BTNH: rotated queries.
      k_BTKH: rotated keys.
      v_BTKH: values.
      segment_ids_BT: 0 marks padding.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
    tensor = mesh.shape[TENSOR]
    K = k_BTKH.shape[2]
    if tensor > K:
        k_BTKH = jnp.repeat(k_BTKH, tensor // K, axis=2)
        v_BTKH = jnp.repeat(v_BTKH, tensor // K, axis=2)
    heads = PartitionSpec((DATA, FSDP), None, TENSOR, None)
    rows = PartitionSpec((DATA, FSDP), None)
    return jax.shard_map(
        attend,
        in_specs=(heads, heads, heads, rows),
        out_specs=heads,
        check_vma=False,  # Pallas calls carry no types of varying axes.
    )(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
