"""Prices, from which the report makes money out of seconds and tokens."""

import dataclasses

from mlagent_jax.config.checks import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostConfig:
    """What the hardware of a run costs; endpoints have their own prices.

    Attributes:
      host_usd_per_hour: the machine without its accelerators, for every second of
        every stage. The default is a round figure for two cores of a cloud machine.
      accelerator_usd_per_hour: all accelerators together, for the seconds of
        stages that use them (pretrain, sft, ppo, evaluation of local policies).
    """

    host_usd_per_hour: float = 0.10
    accelerator_usd_per_hour: float = 0.0

    def __post_init__(self) -> None:
        for name in ("host_usd_per_hour", "accelerator_usd_per_hour"):
            value = getattr(self, name)
            check(value >= 0, f"costs.{name}", value, ">= 0")
