"""Which expert trajectories are worth training on (`KeepConfig`)."""

import hashlib
import json

from mlagent_jax.config import KeepConfig
from mlagent_jax.types import Outcome, Task, Trajectory, to_json


class Filter:
    """Decides trajectory by trajectory; remembers only a digest of each it kept."""

    def __init__(self, cfg: KeepConfig) -> None:
        self._cfg = cfg
        self._seen: set[bytes] = set()

    def reject_reason(self, trajectory: Trajectory, task: Task) -> str:
        """Returns why a trajectory is not kept, "" if it is."""
        cfg, steps = self._cfg, trajectory.steps
        num_invalid = sum(s.outcome is Outcome.INVALID_ACTION for s in steps)
        if num_invalid > cfg.max_invalid_frac * len(steps):
            return "invalid"
        last = steps[-1].score_after if steps else trajectory.start_score
        is_better = task.sign * (last - trajectory.start_score) > 0
        if cfg.only_improving and not is_better:
            return "not_improving"
        if cfg.unique:
            digest = _digest(trajectory)
            if digest in self._seen:
                return "duplicate"
            self._seen.add(digest)
        return ""

    def remember(self, trajectory: Trajectory) -> None:
        """Notes a trajectory that an earlier session kept."""
        if self._cfg.unique:
            self._seen.add(_digest(trajectory))


def _digest(trajectory: Trajectory) -> bytes:
    """Returns 16 bytes that equal actions on the same task share; thoughts differ."""
    actions = [
        s.reply if s.action is None else {**to_json(s.action), "thought": ""}
        for s in trajectory.steps
    ]
    text = json.dumps([trajectory.task_id, actions], sort_keys=True)
    return hashlib.sha256(text.encode()).digest()[:16]
