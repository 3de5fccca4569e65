"""A bandit in place of tasks: which token earns the reward stands in the prompt.

The whole learner runs on it in seconds, and its best mean reward is known.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mlagent_jax.config import (
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PpoConfig,
    RunConfig,
)
from mlagent_jax.env.reward import Reward
from mlagent_jax.model import qwen2
from mlagent_jax.policy.base import Reply
from mlagent_jax.rl.rollout import (
    DroppedSample,
    Rollout,
    Sample,
    derive_seed,
    reply_tokens,
)
from tests.samples import make_step, make_task

CUES = (4, 5, 6, 7)
GOOD, BAD = 0.9, 0.1
NUM_SAMPLES = 32
MODEL = ModelConfig(
    vocab_size=16,
    hidden_size=32,
    intermediate_size=64,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    tie_word_embeddings=True,
    compute_dtype="float32",
)


def make_config(seed: int = 0, **ppo) -> RunConfig:
    settings = {
        "num_updates": 6,
        "states_per_update": NUM_SAMPLES,
        "minibatch_size": NUM_SAMPLES,
        "micro_batch_size": NUM_SAMPLES,
        "seq_lens": (8,),
        "actor": OptimizerConfig(peak_lr=1e-2, end_lr_frac=1.0),
        "critic": OptimizerConfig(peak_lr=1e-2, end_lr_frac=1.0),
        "probe_every": 0,
    }
    return RunConfig(
        name="bandit",
        seed=seed,
        model=MODEL,
        mesh=MeshConfig(data=len(jax.devices()), fsdp=1),
        ppo=PpoConfig(**(settings | ppo)),
    )


def make_policy_params(seed: int = 0):
    return qwen2.init_params(MODEL, jax.random.key(seed))


def good_reply(cue: int) -> int:
    return cue + 4


class Bandit:
    """Samples replies of two tokens; the first should be `good_reply` of the cue."""

    def __init__(self, seed: int = 0, drop: tuple[int, ...] = ()) -> None:
        self.graphdef = qwen2.make_graphdef(MODEL)
        self._seed = seed
        self._drop = drop
        self._sample = jax.jit(functools.partial(_sample_replies, self.graphdef))

    def collect(self, update: int, params, on_sampled=None) -> Rollout:
        rng = np.random.default_rng(derive_seed(self._seed, "cues", update))
        cues = rng.choice(CUES, NUM_SAMPLES)
        prompts_BT = np.stack([np.full(NUM_SAMPLES, 3), cues], axis=1)
        key = jax.random.key(derive_seed(self._seed, "replies", update))
        params = jax.device_put(params, jax.devices()[0])
        tokens_BT, logprobs_BT = jax.device_get(self._sample(params, prompts_BT, key))
        replies = [
            Reply(
                request_id=str(i),
                text=f"reply {tokens_BT[i, 2:]}",
                finish="stop",
                prompt_tokens=(3, int(cue)),
                tokens=tuple(int(t) for t in tokens_BT[i, 2:]),
                logprobs=tuple(float(x) for x in logprobs_BT[i]),
            )
            for i, cue in enumerate(cues)
        ]
        if on_sampled is not None:
            on_sampled([reply_tokens(reply) for reply in replies])
        samples = []
        for i, (cue, reply) in enumerate(zip(cues, replies, strict=True)):
            if i in self._drop:
                samples.append(DroppedSample(state_id=f"{cue}@0", reason="env_failed"))
                continue
            reward = GOOD if tokens_BT[i, 2] == good_reply(cue) else BAD
            samples.append(
                Sample(
                    state_id=f"{cue}@0",
                    task=make_task(),
                    reply=reply,
                    step=make_step("", after=reward),
                    reward=Reward(total=reward, parts={"metric": reward}),
                )
            )
        return Rollout(update=update, samples=tuple(samples))


def _sample_replies(graphdef, params, tokens_BT, key):
    logprobs = []
    for step_key in jax.random.split(key):
        B, T = tokens_BT.shape
        positions_BT = jnp.tile(jnp.arange(T), (B, 1))
        hidden_BTD = qwen2.forward(graphdef, params, tokens_BT, positions_BT)
        logits_BV = qwen2.unembed(graphdef, params, hidden_BTD[:, -1])
        chosen_B = jax.random.categorical(step_key, logits_BV)
        logprobs_BV = jax.nn.log_softmax(logits_BV)
        logprobs.append(jnp.take_along_axis(logprobs_BV, chosen_B[:, None], 1)[:, 0])
        tokens_BT = jnp.concatenate([tokens_BT, chosen_B[:, None]], axis=1)
    return tokens_BT, jnp.stack(logprobs, axis=1)
