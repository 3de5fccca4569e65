"""How fast a program can be at best: counts of a module against a chip's peaks.

Three times, each a lower bound: products at the peak of bfloat16, HBM traffic at the
memory's peak, collectives at the links that their devices are joined by. A step takes
at least the largest of them if everything overlaps, and their sum if nothing does;
real steps lie between, and above where a peak is out of reach.
"""

import dataclasses
from collections.abc import Sequence

from mlagent_jax.parallel.hlo_counts import Collective, Counts
from mlagent_jax.parallel.topology import Slice

Coords = Sequence[tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Bounds of one step.

    Attributes:
      compute_s: products at the peak.
      hbm_s: memory traffic at the peak.
      interconnect_s: collectives, one after the other, each at the links along the
        dimensions of the slice that its group spans.
      mfu_upper_bound: model FLOPs over the peak in the time of the largest of the
        three: nothing that overlaps perfectly is faster.
      mfu_communication_bound: the same if computing did only what the model needs
        (no recomputation): what the interconnect alone allows.
      mfu_without_overlap: the same in the sum of the three.
    """

    compute_s: float
    hbm_s: float
    interconnect_s: float
    mfu_upper_bound: float
    mfu_communication_bound: float
    mfu_without_overlap: float


def roofline(
    counts: Counts, target: Slice, coords: Coords, *, model_flops: float
) -> Roofline:
    """Returns the bounds of a program on a slice.

    Args:
      counts: of the program on one device.
      target: its chips.
      coords: where each device of the mesh sits in the slice, in the mesh's order.
      model_flops: what the step must compute, over all devices.
    """
    chip = target.chip
    compute_s = counts.flops / chip.flops_per_s
    hbm_s = counts.hbm_bytes / chip.hbm_bytes_per_s
    interconnect_s = sum(
        collective_seconds(collective, target, coords)
        for collective in counts.collectives
    )
    ideal_s = model_flops / target.num_chips / chip.flops_per_s
    return Roofline(
        compute_s=compute_s,
        hbm_s=hbm_s,
        interconnect_s=interconnect_s,
        mfu_upper_bound=ideal_s / max(compute_s, hbm_s, interconnect_s, ideal_s),
        mfu_communication_bound=ideal_s / max(interconnect_s, ideal_s),
        mfu_without_overlap=ideal_s / max(compute_s + hbm_s + interconnect_s, ideal_s),
    )


def collective_seconds(collective: Collective, target: Slice, coords: Coords) -> float:
    """Returns the least time of all executions of a collective."""
    if collective.received_bytes == 0:
        return 0.0
    dims = spanned_dims(collective.group, coords)
    num_links = sum(target.links_along(dim) for dim in dims)
    # A group that is not known is given every link of a chip: still a lower bound.
    num_links = num_links or 2 * target.chip.num_dims
    return collective.received_bytes / (num_links * target.chip.link_bytes_per_s)


def spanned_dims(group: Sequence[int], coords: Coords) -> list[int]:
    """Returns the dimensions of the slice along which a group's devices differ."""
    places = [coords[device] for device in group]
    if not places:
        return []
    return [
        dim
        for dim in range(len(places[0]))
        if len({place[dim] for place in places}) > 1
    ]
