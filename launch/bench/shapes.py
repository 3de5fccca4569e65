"""What is measured: model, prompts, replies and batches, from a seed; no jax.

Every peer reads the same numbers from `work.json` and the same weights from a
Hugging Face folder, so nothing but the code differs.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

FIRST_TOKEN = 2  # 0 pads, 1 is the end token of an untouched tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sizes of one benchmark run.

    Attributes:
      hidden: D.
      layers: L.
      heads: N.
      kv_heads: K.
      head_dim: H.
      mlp: F.
      vocab: V; the output layer is not tied.
      batch: (a), (c) rows.
      prompt: (a) prompt tokens.
      new: (a) reply tokens, no reply ends earlier.
      groups: (b) task prefixes.
      group_size: (b) prompts that share each.
      longest_prompt: (b) prompts have 100 tokens to this many.
      longest_reply: (b) replies have 20 tokens to this many.
      slots: (b) sequences decoded together; peers may choose other batches.
      seq: (c) tokens a row.
      trajectories: (c) ragged sequences of an epoch.
      longest: (c) they have 64 tokens to this many, log-uniform.
    """

    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    mlp: int = 1024
    vocab: int = 4096
    batch: int = 8
    prompt: int = 256
    new: int = 128
    groups: int = 8
    group_size: int = 8
    longest_prompt: int = 1500
    longest_reply: int = 400
    slots: int = 16
    seq: int = 512
    trajectories: int = 16
    longest: int = 2048


def parse_shapes(overrides: list[str]) -> Shapes:
    """Returns the default shapes with `name=value` overrides.

    Raises:
      ValueError: an override names no field or has no integer.
    """
    names = {field.name for field in dataclasses.fields(Shapes)}
    values: dict[str, int] = {}
    for text in overrides:
        name, _, value = text.partition("=")
        if name not in names or not value.isdigit() or int(value) == 0:
            raise ValueError(
                f"--size={text}: expected name=<positive integer>, name one of "
                f"{sorted(names)}"
            )
        values[name] = int(value)
    return Shapes(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """The inputs of all workloads.

    Attributes:
      shapes: what they were made from.
      uniform_prompts: (a), all of one length.
      agent_prompts: (b), groups share a prefix.
      end_ids: (b), tokens that end a reply; chosen by `choose_end_ids`.
      uniform_rows: (c), token rows of one length.
      ragged_rows: (c), of many lengths.
    """

    shapes: Shapes
    uniform_prompts: list[list[int]]
    agent_prompts: list[list[int]]
    end_ids: list[int]
    uniform_rows: list[list[int]]
    ragged_rows: list[list[int]]

    def save(self, path: Path) -> None:
        """Writes the work for the peers' processes."""
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Work":
        """Reads what `save` wrote."""
        value: dict[str, Any] = json.loads(path.read_text())
        shapes = Shapes(**value.pop("shapes"))
        return cls(shapes=shapes, **value)


def make_work(shapes: Shapes, seed: int = 0) -> Work:
    """Returns the work of a run; `end_ids` is still empty."""
    rng = np.random.default_rng(seed)

    def tokens(length: int) -> list[int]:
        return rng.integers(FIRST_TOKEN, shapes.vocab, length).tolist()

    def log_uniform(low: int, high: int) -> int:
        return round(np.exp(rng.uniform(np.log(low), np.log(high))))

    agent_prompts: list[list[int]] = []
    for _ in range(shapes.groups):
        prefix = tokens(log_uniform(80, shapes.longest_prompt * 2 // 3))
        for _ in range(shapes.group_size):
            rest = log_uniform(20, shapes.longest_prompt // 3)
            agent_prompts.append(prefix + tokens(rest))
    order = rng.permutation(len(agent_prompts))
    return Work(
        shapes=shapes,
        uniform_prompts=[tokens(shapes.prompt) for _ in range(shapes.batch)],
        agent_prompts=[agent_prompts[i] for i in order],
        end_ids=[],
        uniform_rows=[tokens(shapes.seq) for _ in range(shapes.batch)],
        ragged_rows=[
            tokens(log_uniform(64, shapes.longest)) for _ in range(shapes.trajectories)
        ],
    )


def choose_end_ids(
    replies: list[list[int]], vocab: int, *, shortest: int = 20, seed: int = 0
) -> list[int]:
    """Returns end tokens that make greedy replies stop at many different places.

    Random weights never end a reply by themselves. Tokens that occur among the
    first `shortest` of any reply are no candidates, so no reply is shorter; from
    the others tokens are added until half of the replies would end before half of
    their length.

    Args:
      replies: greedy replies of full length.
      vocab: V.
      shortest: tokens that every reply has.
      seed: of the choice.
    """
    early = {token for reply in replies for token in reply[:shortest]}
    candidates = [t for t in range(FIRST_TOKEN, vocab) if t not in early]
    order = np.random.default_rng(seed).permutation(len(candidates))
    chosen: set[int] = set()
    for index in order:
        chosen.add(candidates[index])
        lengths = [_length(reply, chosen) for reply in replies]
        if np.median(lengths) < 0.4 * max(map(len, replies)):
            break
    return sorted(chosen)


def cut(reply: list[int], end_ids: list[int]) -> list[int]:
    """Returns a reply up to its first end token, that one included."""
    return reply[: _length(reply, set(end_ids))]


def _length(reply: list[int], end_ids: set[int]) -> int:
    places = [i + 1 for i, token in enumerate(reply) if token in end_ids]
    return places[0] if places else len(reply)
