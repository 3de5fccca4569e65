"""Where every parameter lives on the mesh: one table of path rules.

A path is the keys of a leaf joined by "/"; a rule matches the end of it. The same
table therefore places parameters, gradients, optimizer moments and critics, whose
paths end alike. Scalars are replicated without a rule.

Dimensions of a spec follow the parameter: layers are stacked on a leading axis
that stays whole, because the layer scan walks along it.
"""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from mlagent_jax.errors import ConfigError
from mlagent_jax.parallel.mesh import DATA, FSDP, TENSOR

P = PartitionSpec

RULES: tuple[tuple[str, PartitionSpec], ...] = (
    ("embed_tokens/embedding", P(TENSOR, FSDP)),
    ("layers/self_attn/[qkv]_proj/kernel", P(None, FSDP, TENSOR, None)),
    ("layers/self_attn/[qkv]_proj/bias", P(None, TENSOR, None)),
    ("layers/self_attn/o_proj/kernel", P(None, TENSOR, None, FSDP)),
    ("layers/mlp/(gate|up)_proj/kernel", P(None, FSDP, TENSOR)),
    ("layers/mlp/down_proj/kernel", P(None, TENSOR, FSDP)),
    ("layers/(input|post_attention)_layernorm/scale", P(None, None)),
    ("norm/scale", P(None)),
    ("lm_head/kernel", P(FSDP, TENSOR)),
    ("value_head/kernel", P(FSDP, None)),
    ("value_head/bias", P(None)),
    # The sampler's fused copy (model/decoder.py), on the chips of one host.
    ("embedding_VD", P(TENSOR, None)),
    ("(attention_|mlp_)?norm_D", P(None)),
    ("qkv_DKEH", P(None, TENSOR, None, None)),
    ("qkv_bias_KEH", P(TENSOR, None, None)),
    ("out_KGHD", P(TENSOR, None, None, None)),
    ("(gate|up)_DF", P(None, TENSOR)),
    ("down_FD", P(TENSOR, None)),
    ("head_DV", P(None, TENSOR)),
)


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
    """Returns the NamedSharding of every leaf of `tree`, in the same structure.

    Args:
      mesh: from `make_mesh`.
      tree: arrays or `jax.ShapeDtypeStruct`s: parameters, optimizer state, or a
        record of them.

    Raises:
      ConfigError: a leaf matches no rule or several, has another rank than its
        rule, or a dimension that the mesh does not divide; all such leaves are
        listed.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    problems: list[str] = []
    shardings: list[NamedSharding] = []
    for keys, leaf in leaves:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        spec, problem = _place(mesh, path, np.shape(leaf))
        shardings.append(NamedSharding(mesh, spec))
        if problem:
            problems.append(f"  {path} {np.shape(leaf)}: {problem}")
    if problems:
        sizes = dict(mesh.shape)
        raise ConfigError(
            f"{len(problems)} leaves cannot be placed on mesh {sizes}:\n"
            + "\n".join(problems)
        )
    return jax.tree_util.tree_unflatten(treedef, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the placement of arrays whose first axis is the batch."""
    return NamedSharding(mesh, P((DATA, FSDP)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the placement of a full copy on every device."""
    return NamedSharding(mesh, P())


def place(tree: Any, shardings: Any) -> Any:
    """Returns host arrays as arrays of the whole run; all processes pass the same.

    Args:
      tree: numpy arrays.
      shardings: one for all, or a tree of them.
    """

    def place_leaf(x: Any, sharding: Sharding) -> jax.Array:
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(place_leaf, tree, shardings)


def constrain_batch(x: jax.Array) -> jax.Array:
    """Returns `x` with its first axis split over the mesh that is in use, if any.

    The mesh in use is what `jax.set_mesh` set. Without this the compiler may let
    the parameters' placement spread to activations, at the price of the batch's.
    """
    axes = jax.sharding.get_abstract_mesh().axis_names
    if DATA not in axes or FSDP not in axes:
        return x
    return jax.lax.with_sharding_constraint(x, P((DATA, FSDP)))


def constrain_tokens(x_BTD: jax.Array) -> jax.Array:
    """Returns activations split over the mesh in use: rows, and tokens over `tensor`.

    What lies between tensor-parallel products would otherwise be whole on each of
    their devices. Tokens that `tensor` does not divide stay whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if TENSOR not in mesh.axis_names or x_BTD.shape[1] % mesh.shape[TENSOR] != 0:
        return constrain_batch(x_BTD)
    return jax.lax.with_sharding_constraint(x_BTD, P((DATA, FSDP), TENSOR))


def gather_params(params: Any) -> Any:
    """Returns parameters whole along `fsdp`, ready to be used, still split by `tensor`.

    To be called where they are used, on what is used at once (one layer): the
    transpose of this gathering is a reduce-scatter of the gradients. Left to itself
    the compiler may gather activations instead, which are larger. The leading axis
    of stacked layers may be gone. Without a mesh in use nothing happens.

    Args:
      params: parameters, in the dtype in which they shall travel.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if FSDP not in mesh.axis_names:
        return params

    def gather(keys: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        (spec,) = _specs(path)
        spec = P(*spec[len(spec) - leaf.ndim :])
        if FSDP not in spec:  # whole already; let the compiler sum its gradient
            return leaf
        spec = _share_kv_heads(path, spec, leaf.shape, mesh.shape[TENSOR])
        whole = P(*(None if axis == FSDP else axis for axis in spec))
        return jax.lax.with_sharding_constraint(leaf, whole)

    return jax.tree_util.tree_map_with_path(gather, params)


def _place(
    mesh: Mesh, path: str, shape: tuple[int, ...]
) -> tuple[PartitionSpec, str | None]:
    """Returns the spec of a leaf and what is wrong with it, if anything."""
    if not shape:
        return P(), None
    specs = _specs(path)
    if len(specs) != 1:
        patterns = [pattern for pattern, spec in RULES if spec in specs]
        return P(), f"matches {len(specs)} rules {patterns}, expected one"
    if len(specs[0]) != len(shape):
        return P(), f"its rule {specs[0]} is for {len(specs[0])} dimensions"
    spec = _share_kv_heads(path, specs[0], shape, mesh.shape[TENSOR])
    for dim, axis in zip(shape, spec, strict=True):
        if axis is not None and dim % mesh.shape[axis] != 0:
            return P(), f"{dim} is not divisible by {axis} = {mesh.shape[axis]}"
    return spec, None


def _specs(path: str) -> list[PartitionSpec]:
    return [spec for rule, spec in RULES if re.search(f"(^|/){rule}$", path)]


def _share_kv_heads(
    path: str, spec: PartitionSpec, shape: tuple[int, ...], tensor: int
) -> PartitionSpec:
    """Returns `spec` with key/value heads whole if several devices share each one."""
    if not re.search("[kv]_proj/(kernel|bias)$", path) or TENSOR not in spec:
        return spec
    num_heads = shape[spec.index(TENSOR)]
    if tensor <= num_heads or tensor % num_heads != 0:
        return spec
    return P(*(None if axis == TENSOR else axis for axis in spec))
