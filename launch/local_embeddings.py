"""Embeddings from a model's own hidden states: the mean over a text's tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlagent_jax.explore.embeddings import Embed, Embeddings, unit_rows
from mlagent_jax.model import hf, qwen2
from mlagent_jax.text.tokenizer import Tokenizer

_BATCH = 16
_BUCKET = 64  # Lengths are padded to multiples of it, against recompiles.


def load_embedder(folder: Path) -> Embed:
    """Returns an embedder that runs the model of a Hugging Face folder.

    Raises:
      CheckpointError: the weights are missing, damaged or of another shape.
    """
    model_cfg, params = hf.load_folder(folder)
    return make_embedder(qwen2.make_graphdef(model_cfg), params, Tokenizer.load(folder))


def make_embedder(graphdef: Any, params: qwen2.Params, tokenizer: Tokenizer) -> Embed:
    """Returns texts -> unit vectors of length D.

    Args:
      graphdef: from `qwen2.make_graphdef`.
      params: weights.
      tokenizer: of the same model.
    """

    @jax.jit
    def mean_states(tokens_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
        positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        hidden_BTD = qwen2.forward(
            graphdef, params, tokens_BT, positions_BT, segment_ids_BT=mask_BT
        )
        total_BD = jnp.einsum("BTD,BT->BD", hidden_BTD.astype(jnp.float32), mask_BT)
        return total_BD / jnp.maximum(mask_BT.sum(axis=1, keepdims=True), 1)

    def embed(texts: Sequence[str], seed: int) -> Embeddings:
        del seed
        rows: list[np.ndarray] = []
        for start in range(0, len(texts), _BATCH):
            ids = [tokenizer.encode(text) for text in texts[start : start + _BATCH]]
            length = -(-max(map(len, ids)) // _BUCKET) * _BUCKET
            tokens_BT = np.zeros((_BATCH, length), np.int32)
            mask_BT = np.zeros((_BATCH, length), np.int32)
            for row, found in enumerate(ids):
                tokens_BT[row, : len(found)] = found
                mask_BT[row, : len(found)] = 1
            states_BD = mean_states(jnp.asarray(tokens_BT), jnp.asarray(mask_BT))
            rows.append(np.asarray(states_BD)[: len(ids)])
        return unit_rows(np.concatenate(rows))

    return embed
