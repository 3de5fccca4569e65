"""Which devices take part in a collective: reading XLA's notations for groups.

XLA writes them as lists, `{{0,1},{2,3}}`; as a reshaped and transposed range,
`[4,2]<=[2,4]T(1,0)`; or as axes of a mesh, `mesh['a'=4,'b'=2] {'b'}`. Numbers are
positions in the device order that the program was compiled for.
"""

import math
import re

import numpy as np

_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_LISTS = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
_RANGE = re.compile(rf"replica_groups=\[([\d,]+)\]<={_IOTA}")
_MESH = re.compile(
    rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_IOTA}\))? \{{([^}}]*)\}}"
)
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{}]*\})\}")


def device_groups(attrs: str) -> list[list[int]]:
    """Returns the groups of devices that exchange data, each at least one device.

    A permutation has a group for every pair of sender and receiver. Empty if the
    instruction names no groups, or in a notation that is not known here.

    Args:
      attrs: the text behind a collective's arguments.
    """
    found = _LISTS.search(attrs) or _PAIRS.search(attrs)
    if found:
        parts = re.findall(r"\{([\d,]+)\}", found[1])
        return [_ints(part) for part in parts]
    found = _RANGE.search(attrs)
    if found:
        return _iota(found[2], found[3]).reshape(_ints(found[1])).tolist()
    found = _MESH.search(attrs)
    if found:
        sizes = re.findall(r"'([^']*)'=(\d+)", found[1])
        names = [name for name, _ in sizes]
        shape = [int(size) for _, size in sizes]
        used = [names.index(name) for name in re.findall(r"'([^']*)'", found[4])]
        order = _iota(found[2] or str(math.prod(shape)), found[3])
        rest = [dim for dim in range(len(shape)) if dim not in used]
        devices = order.reshape(shape).transpose(rest + used)
        group_size = math.prod(shape[dim] for dim in used)
        return devices.reshape(-1, group_size).tolist()
    return []


def _iota(dims: str, permutation: str | None) -> np.ndarray:
    shape = _ints(dims)
    order = np.arange(math.prod(shape)).reshape(shape)
    return order.transpose(_ints(permutation)) if permutation else order


def _ints(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
