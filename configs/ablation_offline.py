"""The questions that the paper leaves open, on the offline pack that anyone can run.

    python -m launch.ablate --config=configs/ablation_offline.py
    python -m launch.ablate --config=configs/ablation_offline.py --seed=0 --arm=ppo \
        --arm="paper v1 reward"   # a part of it; the rest can follow later

Hardware: CPU cores only. A run of the quickstart takes 15 to 25 minutes on two, and
this grid has 28 arms that share stages, times 3 seeds: about half a day on two cores
that do nothing else (estimated from single runs), less in proportion on more. What was
run of it, and by which code and settings: BUILD_NOTES.md, "Ablations". A first look:
`--set ppo.num_updates=8`.
"""

from mlagent_jax.config import Arm, Comparison, Grid

# The first tasks of the quickstart, in its order.
_TASKS = ("digits", "cactus", "shapes", "leaves", "houses", "ship")


def _tasks(num: int) -> str:
    return f"held_in={list(_TASKS[:num])}"


# What the comparisons at equal cost need: a curve with a point every other update.
_CURVE = ("ppo.probe_every=2", "ppo.probe_trajectories=2")
_EXPERTS_STATES = "ppo.pool.own_frac=0.0"
_EPISODE = (
    "ppo.mode=episode",
    _EXPERTS_STATES,
    "ppo.episode_steps=8",
    "ppo.states_per_update=9",
    "ppo.minibatch_size=72",
    "ppo.micro_batch_size=72",
)
_GROUPS = ("ppo.states_per_update=16", "ppo.samples_per_state=4")
_STALE = ("ppo.importance_cap=2.0", "ppo.max_staleness=1")


def _no_critic(estimator: str) -> tuple[str, ...]:
    return (f"ppo.estimator={estimator}", "ppo.critic_warmup_updates=0")


def get_grid() -> Grid:
    """Returns the grid of every comparison that the README lists."""
    return Grid(
        name="ablation_offline",
        base="configs/quickstart.py",
        seeds=(0, 1, 2),
        arms=(
            Arm("sft only", policy="sft"),
            Arm("ppo"),
            Arm("sft, no exploration", ("collect.max_ideas_in_prompt=0",), "sft"),
            Arm("ppo, no exploration", ("collect.max_ideas_in_prompt=0",)),
            Arm("step-wise", _CURVE),
            Arm("episode-wise", (*_CURVE, *_EPISODE)),
            Arm("paper v1 reward", ("ppo.reward.preset=paper_v1",)),
            Arm("paper v2 reward", ("ppo.reward.preset=paper_v2",)),
            Arm("floor of 1", ("ppo.reward.floor=1.0",)),
            Arm("no milestones", ("ppo.reward.milestone=0.0",)),
            Arm("duration cost", ("ppo.reward.duration_weight=0.1",)),
            Arm("gap penalty", ("ppo.reward.gap_weight=0.5",)),
            Arm("1 task", (_tasks(1),)),
            Arm("3 tasks", (_tasks(3),)),
            Arm("6 tasks", (_tasks(6),)),
            Arm("duration-aware", ("ppo.duration_aware=true",)),
            Arm("expert's states only", (_EXPERTS_STATES,)),
            Arm("own states drawn evenly", ("ppo.pool.by_learnability=false",)),
            Arm("half own states", ("ppo.pool.own_frac=0.5", "ppo.pool.own_size=2048")),
            Arm("the paper's choices", ("ppo.reward.preset=paper_v1", _EXPERTS_STATES)),
            Arm("ppo, 4 a state", _GROUPS),
            Arm("grpo, 4 a state", (*_GROUPS, *_no_critic("grpo"))),
            Arm("rloo, 4 a state", (*_GROUPS, *_no_critic("rloo"))),
            Arm("one update stale", _STALE),
            Arm("shared value head", ("ppo.value_model=shared",)),
            Arm("shorter", ("ppo.num_updates=32", "ppo.actor.peak_lr=2e-4")),
            Arm("no entropy bonus", ("ppo.entropy_coef=0.0",)),
            Arm("slower critic", ("ppo.critic.peak_lr=5e-4",)),
        ),
        comparisons=(
            Comparison("sft", "What RL adds to fine-tuning", ("sft only", "ppo")),
            Comparison(
                "exploration",
                "Diverse ideas in the expert's prompt, with and without",
                ("ppo", "ppo, no exploration", "sft only", "sft, no exploration"),
            ),
            Comparison(
                "step_vs_episode_seconds",
                "Step-wise against episode-wise in equal time",
                ("step-wise", "episode-wise"),
                at="seconds",
            ),
            Comparison(
                "step_vs_episode_executions",
                "Step-wise against episode-wise in equal script executions",
                ("step-wise", "episode-wise"),
                at="executions",
            ),
            Comparison(
                "rewards",
                "Reward presets, and the parts of “bounded”",
                (
                    "ppo",
                    "paper v1 reward",
                    "paper v2 reward",
                    "floor of 1",
                    "no milestones",
                    "duration cost",
                    "gap penalty",
                ),
                note="The step reward is that of each arm's own preset.",
            ),
            Comparison(
                "tasks",
                "Number of training tasks",
                ("1 task", "3 tasks", "6 tasks", "ppo"),
                note="ppo trains on 9; the held-in gain is over each arm's own tasks.",
            ),
            Comparison("duration", "Duration-aware updates", ("ppo", "duration-aware")),
            Comparison(
                "own_states",
                "States of the policy's own traces",
                (
                    "ppo",
                    "expert's states only",
                    "half own states",
                    "own states drawn evenly",
                    "the paper's choices",
                ),
            ),
            Comparison(
                "estimators",
                "PPO against group-relative estimators at 4 samples a state",
                ("ppo, 4 a state", "grpo, 4 a state", "rloo, 4 a state"),
            ),
            Comparison(
                "learner",
                "Other choices of the learner",
                (
                    "ppo",
                    "one update stale",
                    "shared value head",
                    "shorter",
                    "no entropy bonus",
                    "slower critic",
                ),
            ),
        ),
    )
