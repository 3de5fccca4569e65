"""The critic of PPO: the policy's architecture with a scalar head.

It is a parameter tree of its own over the policy's graph definition; nothing is
shared with the policy after the start. The head alone can also stand on the policy's
own hidden states (`ppo.value_model = "shared"`).

Axes: B rows, T tokens, D model width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mlagent_jax.config import ModelConfig
from mlagent_jax.model import qwen2

_HEAD_STD = 0.01  # Of the first values, since hidden states are normalised.


def init_critic(
    cfg: ModelConfig, policy_params: qwen2.Params, key: jax.Array
) -> qwen2.Params:
    """Returns {"trunk", "value_head"}: a copy of the policy with a small new head.

    The arrays are copies, so that donating one tree leaves the other alive.
    """
    trunk = {name: p for name, p in policy_params.items() if name != "lm_head"}
    return {"trunk": jax.tree.map(jnp.copy, trunk), **init_value_head(cfg, key)}


def init_value_head(cfg: ModelConfig, key: jax.Array) -> qwen2.Params:
    """Returns {"value_head"}: a small random head for hidden states."""
    noise_D1 = jax.random.normal(key, (cfg.hidden_size, 1), jnp.float32)
    return {
        "value_head": {
            "kernel": noise_D1 * _HEAD_STD * cfg.hidden_size**-0.5,
            "bias": jnp.zeros(1, jnp.float32),
        }
    }


def values(
    graphdef: nnx.GraphDef[qwen2.Qwen2],
    critic_params: qwen2.Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segment_ids_BT: jax.Array,
) -> jax.Array:
    """Returns float32 values_BT: expected return after each token, itself seen.

    Args:
      graphdef: the policy's.
      critic_params: from `init_critic`.
      tokens_BT: token ids.
      positions_BT: position of each token in its own sequence.
      segment_ids_BT: 0 marks padding, whose values mean nothing.
    """
    hidden_BTD = qwen2.forward(
        graphdef,
        critic_params["trunk"],
        tokens_BT,
        positions_BT,
        segment_ids_BT=segment_ids_BT,
    )
    return head_values(critic_params, hidden_BTD)


def head_values(critic_params: qwen2.Params, hidden_BTD: jax.Array) -> jax.Array:
    """Returns float32 values_BT that the value head reads off hidden states."""
    head = critic_params["value_head"]
    values_BT1 = hidden_BTD.astype(jnp.float32) @ head["kernel"] + head["bias"]
    return values_BT1[..., 0]
