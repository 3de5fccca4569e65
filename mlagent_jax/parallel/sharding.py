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

    What a tensor-parallel layer hands on would otherwise be whole on each of its
    devices. Tokens that `tensor` does not divide stay whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if TENSOR not in mesh.axis_names or x_BTD.shape[1] % mesh.shape[TENSOR] != 0:
        return constrain_batch(x_BTD)
    return jax.lax.with_sharding_constraint(x_BTD, P((DATA, FSDP), TENSOR))


def _place(
    mesh: Mesh, path: str, shape: tuple[int, ...]
) -> tuple[PartitionSpec, str | None]:
    """Returns the spec of a leaf and what is wrong with it, if anything."""
    if not shape:
        return P(), None
    matches = [rule for rule in RULES if re.search(f"(^|/){rule[0]}$", path)]
    if len(matches) != 1:
        patterns = [pattern for pattern, _ in matches]
        return P(), f"matches {len(matches)} rules {patterns}, expected one"
    spec = matches[0][1]
    if len(spec) != len(shape):
        return P(), f"its rule {spec} is for {len(spec)} dimensions"
    for dim, axis in zip(shape, spec, strict=True):
        if axis is not None and dim % mesh.shape[axis] != 0:
            return P(), f"{dim} is not divisible by {axis} = {mesh.shape[axis]}"
    return spec, None
