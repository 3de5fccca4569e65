"""The reward of one step: a pure function of its record (paper, section A.6).

Three named presets. Each first sorts the step into one class, by typed outcome and
never by text, then gives that class its value:

| class | steps | paper_v1 | paper_v2 | bounded |
|---|---|---|---|---|
| invalid | `INVALID_ACTION` | 0 | -1 | -floor |
| corner | any of `types.CORNER_CASES` | 0.5 | 0 | 0 |
| error | `SCRIPT_ERROR`, `INVALID_SUBMISSION` | 0 | -1 | -floor + milestones |
| undo | a valid undo | 0.5 | 0 | -clip(-gain) |
| neutral | valid, but no edit | 0.5 | 0 | 0 |
| metric | an edit with a score | sigmoid(alpha * gain) | gain | clip(won) - duration |

gain = sign * (m_{t+1} - m_t) / |best - baseline|: the part of the task's headroom that
the edit won; 0 where a task has no headroom. `paper_v2` leaves it unclipped, so a large
regression costs more than a crash; `bounded` clips it to [-floor, clip]. Milestones:
floor * milestone * the part that a failed script reached of what the sandbox watches
for: that it read data, ran to its end, wrote a submission. That it fitted a model
cannot be seen from outside. In `bounded`, an undo gives back what the edit before it
was paid for its score: going there and back earns nothing, and leaving a regression is
as good as not having made it. An edit that leaves one wins no more by that than its
undo would: of the edit's gain, the part up to the best score that undoing could bring
back counts for `floor` at most, what one regression costs at most, and the part beyond
it in full (`won`). Else a policy earns from breaking things to mend them. This holds
edit by edit: whoever mends in several steps is still paid up to `floor` for each.
"""

import dataclasses
import math
from typing import Final, Literal

from mlagent_jax.config import RewardConfig
from mlagent_jax.env.advance import walk
from mlagent_jax.types import (
    CORNER_CASES,
    ActionKind,
    Outcome,
    State,
    StepRecord,
    Task,
    Trajectory,
)

PRESETS: Final = ("paper_v1", "paper_v2", "bounded")

_StepClass = Literal["invalid", "corner", "error", "undo", "neutral", "metric"]

_PAPER_V1 = {"invalid": 0.0, "corner": 0.5, "error": 0.0, "undo": 0.5, "neutral": 0.5}
_PAPER_V2 = {"invalid": -1.0, "corner": 0.0, "error": -1.0, "undo": 0.0, "neutral": 0.0}
_ERRORS = frozenset({Outcome.SCRIPT_ERROR, Outcome.INVALID_SUBMISSION})
_MILESTONES = ("data_read", "ran_to_end", "submission_written")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
    """A reward and where it comes from.

    Attributes:
      total: what the learner gets; the sum of `parts`.
      parts: named terms: the class of the step ("invalid", "corner", "error",
        "undo", "neutral" or "metric"), in `bounded` also "milestone" and "duration",
        and with `gap_weight` also "gap".
    """

    total: float
    parts: dict[str, float]


def compute_reward(
    state: State,
    step: StepRecord,
    task: Task,
    cfg: RewardConfig,
    *,
    test_score: float | None = None,
) -> Reward:
    """Returns the reward of `step` under the preset `cfg.preset`.

    Args:
      state: where the step started; `bounded` reads what can be undone there.
      step: the recorded step.
      task: its task; gives direction, headroom and time limit.
      cfg: preset and knobs.
      test_score: of the step's submission on the test part of a training task, for
        the gap penalty; None adds none.
    """
    step_class = _classify(step)
    gain = _gain(step, task)
    match cfg.preset:
        case "paper_v1":
            value = (
                _sigmoid(cfg.alpha * gain)
                if step_class == "metric"
                else _PAPER_V1[step_class]
            )
            parts = {step_class: value}
        case "paper_v2":
            value = gain if step_class == "metric" else _PAPER_V2[step_class]
            parts = {step_class: value}
        case "bounded":
            parts = _bounded_parts(state, step, step_class, gain, task, cfg)
    if test_score is not None and step_class == "metric":
        parts["gap"] = -cfg.gap_weight * _gap(step.score_after, test_score, task, cfg)
    return Reward(total=sum(parts.values()), parts=parts)


def reward_parts(
    state: State, step: StepRecord, task: Task
) -> dict[str, dict[str, float]]:
    """Returns preset -> parts of the reward of `step` under its default settings."""
    return {
        preset: compute_reward(state, step, task, RewardConfig(preset=preset)).parts
        for preset in PRESETS
    }


def trajectory_rewards(
    trajectory: Trajectory, task: Task, cfg: RewardConfig
) -> tuple[float, ...]:
    """Returns the reward of every step of a trajectory."""
    steps = walk(trajectory)
    return tuple(compute_reward(state, step, task, cfg).total for state, step in steps)


def _classify(step: StepRecord) -> _StepClass:
    if step.outcome is Outcome.INVALID_ACTION:
        return "invalid"
    if step.outcome in CORNER_CASES:
        return "corner"
    if step.outcome in _ERRORS:
        return "error"
    if step.is_edit and step.outcome is Outcome.SCORED:
        return "metric"
    if step.action is not None and step.action.kind is ActionKind.UNDO:
        return "undo"
    return "neutral"


def _gain(step: StepRecord, task: Task) -> float:
    """Returns the improvement in units of the task's headroom."""
    if task.headroom == 0:
        return 0.0
    return task.sign * (step.score_after - step.score_before) / task.headroom


def _gap(
    selection_score: float, test_score: float, task: Task, cfg: RewardConfig
) -> float:
    """Returns by how much a submission looks better than it is, in [0, 1]."""
    if task.headroom == 0:
        return 0.0
    gap = task.sign * (selection_score - test_score) / task.headroom
    return min(max(gap - cfg.gap_tolerance, 0.0), 1.0)


def _won(state: State, gain: float, task: Task, cfg: RewardConfig) -> float:
    """Returns what counts of an edit's gain, in units of the headroom."""
    held = [task.sign * score for _, score in state.previous_snapshots]
    if gain <= 0 or not held:
        return gain
    lost = max(max(held) - task.sign * state.score, 0.0) / task.headroom
    regained = min(gain, lost)
    return min(regained, cfg.floor) + gain - regained


def _bounded_parts(
    state: State,
    step: StepRecord,
    step_class: _StepClass,
    gain: float,
    task: Task,
    cfg: RewardConfig,
) -> dict[str, float]:
    if step_class == "metric":
        won = _won(state, gain, task, cfg)
        parts = {"metric": min(max(won, -cfg.floor), cfg.clip)}
        if cfg.duration_weight and step.execution is not None:
            used_frac = min(step.execution.wall_s / task.limits.wall_s, 1.0)
            parts["duration"] = -cfg.duration_weight * used_frac
        return parts
    if step_class == "undo":
        return {"undo": -min(max(-gain, -cfg.floor), cfg.clip)}
    if step_class == "error":
        forgiven = cfg.floor * cfg.milestone * _progress(step)
        return {"error": -cfg.floor, "milestone": forgiven}
    return {step_class: -cfg.floor if step_class == "invalid" else 0.0}


def _progress(step: StepRecord) -> float:
    """Returns the part of the milestones that a failed script reached."""
    if step.execution is None:
        return 0.0
    reached = set(step.execution.milestones)
    return sum(name in reached for name in _MILESTONES) / len(_MILESTONES)


def _sigmoid(x: float) -> float:
    """Returns 1 / (1 + e^-x) without overflow for any finite x."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))
