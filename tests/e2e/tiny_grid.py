"""The smallest grid: four arms of the tiny config that share all but RL."""

from mlagent_jax.config import Arm, Comparison, Grid

_GROUPS = ("ppo.states_per_update=2", "ppo.samples_per_state=2")
_NO_CRITIC = ("ppo.estimator=grpo", "ppo.critic_warmup_updates=0")


def get_grid() -> Grid:
    """Returns the grid."""
    return Grid(
        name="tiny_grid",
        base="tests/e2e/tiny_config.py",
        seeds=(0,),
        arms=(
            Arm("sft", policy="sft"),
            Arm("step", ("ppo.pool.own_frac=0.5", "ppo.micro_batch_tokens=1216")),
            Arm(
                "episode",
                (
                    "ppo.mode=episode",
                    "ppo.pool.own_frac=0.0",
                    "ppo.episode_steps=2",
                    "ppo.states_per_update=2",
                    "ppo.max_staleness=1",
                    "ppo.importance_cap=2.0",
                ),
            ),
            Arm("grpo", (*_GROUPS, *_NO_CRITIC, "ppo.duration_aware=true")),
        ),
        comparisons=(
            Comparison("modes", "Modes", ("step", "episode", "sft")),
            Comparison("seconds", "Equal time", ("step", "episode"), at="seconds"),
            Comparison("estimators", "Estimators", ("step", "grpo")),
        ),
    )
