"""The cost ledger: tokens, seconds, executions and money of every phase of a run.

Everything is counted from what the stages recorded, so a run that was stopped and
continued counts once. What a phase did not record stays None and is shown as a
dash, never as zero.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlagent_jax.config import PolicyConfig, RunConfig
from mlagent_jax.data.jsonl import append_line, read_lines
from mlagent_jax.data.trajectories import TrajectoryFile
from mlagent_jax.evaluation.records import EvalRecord
from mlagent_jax.evaluation.tables import Table
from mlagent_jax.types import Trajectory

_DEVICE_STAGES = ("pretrain", "sft", "ppo")
_TIMES_FILE = "times.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseCost:
    """What one phase used.

    Attributes:
      phase: "collect", "pretrain", "sft", "ppo" or "evaluate".
      policy: who replied; "" where nobody did.
      wall_s: seconds from start to end, None if unknown.
      num_trajectories: whole trajectories.
      num_steps: replies that were carried out.
      num_executions: scripts that ran; those answered by the cache not counted.
      script_s: seconds of those scripts.
      prompt_tokens: read by the policy.
      reply_tokens: written by the policy.
      endpoint_usd: price of the tokens, 0.0 for our own sampler.
      machine_usd: price of the seconds, None if those are unknown.
    """

    phase: str
    policy: str = ""
    wall_s: float | None = None
    num_trajectories: int | None = None
    num_steps: int | None = None
    num_executions: int | None = None
    script_s: float | None = None
    prompt_tokens: float | None = None
    reply_tokens: float | None = None
    endpoint_usd: float = 0.0
    machine_usd: float | None = None

    @property
    def usd(self) -> float | None:
        """What is known of endpoint and machine together, None if nothing is."""
        if self.machine_usd is None:
            return self.endpoint_usd or None
        return self.machine_usd + self.endpoint_usd


def make_ledger(
    config: RunConfig, workdir: Path, evaluations: Mapping[str, Sequence[EvalRecord]]
) -> list[PhaseCost]:
    """Returns the phases that the run directory has records of, in order.

    Raises:
      DataError: a record is damaged.
    """
    stages = _read_stages(workdir)
    ledger: list[PhaseCost] = []
    folder = workdir / "trajectories"
    names = ("expert.jsonl", "fresh.jsonl", "rejected.jsonl")
    files = [folder / name for name in names]
    trajectories = (t for f in files if f.exists() for t in TrajectoryFile(f))
    counted = _count(trajectories)
    if counted["num_trajectories"]:
        ledger.append(
            _priced(
                config,
                PhaseCost(
                    phase="collect",
                    policy="expert",
                    wall_s=stages.get("collect"),
                    **counted,
                ),
                config.collect.policy,
            )
        )
    for stage in _DEVICE_STAGES:
        cost = _training_cost(workdir / stage, stage, stages.get(stage))
        if cost is not None:
            ledger.append(_priced(config, cost, None))
    times = read_times(workdir)
    for name, records in evaluations.items():
        cost = PhaseCost(
            phase="evaluate",
            policy=name,
            wall_s=times.get(name),
            **_count(r.trajectory for r in records),
        )
        ledger.append(_priced(config, cost, policy_config(config, name)))
    return ledger + _unrecorded(config, workdir, ledger)


def spending_path(workdir: Path, model: str) -> Path:
    """Returns where every answer of an endpoint's model is counted."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", model)
    return workdir / "spending" / f"{name}.jsonl"


def policy_config(config: RunConfig, name: str) -> PolicyConfig | None:
    """Returns the settings of a policy of `eval.policies`, None for starter."""
    base = name.removeprefix("tree:")
    if base == "starter":
        return None
    if base == "expert":
        return config.collect.policy
    if base.startswith("api:"):
        model = base.removeprefix("api:")
        return next((e for e in config.eval.endpoints if e.model == model), None)
    return PolicyConfig(kind="local", checkpoint=base.removeprefix("hf:"))


def add_time(workdir: Path, policy: str, seconds: float) -> None:
    """Records that evaluating `policy` took so long; further calls add up."""
    path = workdir / "eval" / _TIMES_FILE
    append_line(path, {"policy": policy, "wall_s": seconds})


def read_times(workdir: Path) -> dict[str, float]:
    """Returns policy -> seconds of its evaluation so far.

    Raises:
      DataError: a line is damaged.
    """
    totals: dict[str, float] = {}
    for line, _ in read_lines(workdir / "eval" / _TIMES_FILE):
        totals[line["policy"]] = totals.get(line["policy"], 0.0) + line["wall_s"]
    return totals


def cost_table(ledger: Sequence[PhaseCost]) -> Table:
    """Returns one row a phase and a total."""
    rows = [_row(cost) for cost in ledger]
    total = PhaseCost(
        phase="total",
        wall_s=_total(ledger, "wall_s"),
        num_trajectories=_total(ledger, "num_trajectories"),
        num_steps=_total(ledger, "num_steps"),
        num_executions=_total(ledger, "num_executions"),
        script_s=_total(ledger, "script_s"),
        prompt_tokens=_total(ledger, "prompt_tokens"),
        reply_tokens=_total(ledger, "reply_tokens"),
        endpoint_usd=sum(c.endpoint_usd for c in ledger),
        machine_usd=_total(ledger, "machine_usd"),
    )
    rows.append(_row(total))
    return Table(
        name="costs",
        title="What the run used: every phase, not inference alone",
        columns=(
            "phase",
            "policy",
            "seconds",
            "trajectories",
            "steps",
            "executions",
            "script s",
            "prompt tokens",
            "reply tokens",
            "USD",
        ),
        rows=tuple(rows),
        best=frozenset((len(rows) - 1, j) for j in range(10)),
        note="A dash: not recorded. Executions answered by the cache are not counted. "
        "Money is seconds and tokens at the prices of the run's configuration.",
    )


def _unrecorded(
    config: RunConfig, workdir: Path, ledger: Sequence[PhaseCost]
) -> list[PhaseCost]:
    """Returns what endpoints were paid beyond the records: ideas, lost answers."""
    models: dict[str, PolicyConfig] = {}
    recorded: dict[str, list[PhaseCost]] = {}
    for cost in ledger:
        policy = policy_config(config, cost.policy)
        if policy is not None and policy.kind == "api":
            models[policy.model] = policy
            recorded.setdefault(policy.model, []).append(cost)
    if config.collect.ideas.source == "api":
        endpoint = config.collect.ideas.endpoint
        models.setdefault(endpoint.model, endpoint)
    rest: list[PhaseCost] = []
    for model, policy in models.items():
        lines = [line for line, _ in read_lines(spending_path(workdir, model))]
        tokens = {
            name: sum(line[name] for line in lines)
            - sum(getattr(cost, name) or 0.0 for cost in recorded.get(model, []))
            for name in ("prompt_tokens", "reply_tokens")
        }
        if max(tokens.values()) > 0:
            cost = PhaseCost(
                phase="ideas and lost answers",
                policy=model,
                prompt_tokens=tokens["prompt_tokens"],
                reply_tokens=tokens["reply_tokens"],
                endpoint_usd=policy.usd(**tokens),
            )
            rest.append(cost)
    return rest


def _priced(
    config: RunConfig, cost: PhaseCost, policy: PolicyConfig | None
) -> PhaseCost:
    prices = config.costs
    endpoint_usd = 0.0
    if policy is not None and policy.kind == "api":
        endpoint_usd = policy.usd(cost.prompt_tokens or 0.0, cost.reply_tokens or 0.0)
    uses_devices = cost.phase in _DEVICE_STAGES or (
        policy is not None and policy.kind == "local"
    )
    per_hour = prices.host_usd_per_hour
    if uses_devices:
        per_hour += prices.accelerator_usd_per_hour
    machine_usd = None if cost.wall_s is None else cost.wall_s / 3600 * per_hour
    return dataclasses.replace(cost, endpoint_usd=endpoint_usd, machine_usd=machine_usd)


def _count(trajectories: Iterable[Trajectory]) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "num_trajectories": 0,
        "num_steps": 0,
        "num_executions": 0,
        "script_s": 0.0,
        "prompt_tokens": 0.0,
        "reply_tokens": 0.0,
    }
    for trajectory in trajectories:
        counts["num_trajectories"] += 1
        counts["num_steps"] += len(trajectory.steps)
        for step in trajectory.steps:
            if step.execution is not None and not step.execution.is_cached:
                counts["num_executions"] += 1
                counts["script_s"] += step.execution.wall_s
        for name in ("prompt_tokens", "reply_tokens"):
            counts[name] += trajectory.usage.get(name, 0.0)
    return counts


def _training_cost(folder: Path, stage: str, wall_s: float | None) -> PhaseCost | None:
    if not folder.is_dir():
        return None
    rollouts = folder / "rollouts.jsonl"
    if not rollouts.exists():
        return PhaseCost(phase=stage, wall_s=wall_s)
    num_steps = num_executions = 0
    script_s = prompt_tokens = reply_tokens = 0.0
    for line, _ in read_lines(rollouts):
        num_steps += 1
        prompt_tokens += line.get("prompt_tokens", 0)
        reply_tokens += line["reply_tokens"]
        if line["script_s"] > 0 and not line.get("is_cached", False):
            num_executions += 1
            script_s += line["script_s"]
    return PhaseCost(
        phase=stage,
        policy=stage,
        wall_s=wall_s,
        num_steps=num_steps,
        num_executions=num_executions,
        script_s=script_s,
        prompt_tokens=prompt_tokens or None,
        reply_tokens=reply_tokens,
    )


def _read_stages(workdir: Path) -> dict[str, float]:
    path = workdir / "stages.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _total(ledger: Sequence[PhaseCost], name: str) -> Any:
    values = [v for c in ledger if (v := getattr(c, name)) is not None]
    return sum(values) if values else None


def _row(cost: PhaseCost) -> tuple[str, ...]:
    return (
        cost.phase,
        cost.policy,
        _cell(cost.wall_s, ".0f"),
        _cell(cost.num_trajectories, ",d"),
        _cell(cost.num_steps, ",d"),
        _cell(cost.num_executions, ",d"),
        _cell(cost.script_s, ".1f"),
        _cell(cost.prompt_tokens, ",.0f"),
        _cell(cost.reply_tokens, ",.0f"),
        _cell(cost.usd, ".4f"),
    )


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
