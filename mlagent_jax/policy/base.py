"""The protocol of every policy: prompts in, replies out, in any order.

A policy owns a queue. The caller submits requests, polls for replies and is free
to do other work in between; that is what lets sampling and script execution
overlap. Nothing here imports jax, so environment code may use these records.
"""

import dataclasses
from typing import Literal, Protocol

from mlagent_jax.types import Message

Finish = Literal["stop", "length", "prompt_too_long", "error"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt that waits for a reply.

    Attributes:
      id: names the reply; unique among the pending requests of a policy.
      messages: the chat, ending with a user turn.
      seed: determines the reply together with `messages`.
      num_shared_turns: how many of the first messages other requests are likely to
        start with, too; a sampler may keep those once for all. It follows from what is
        asked, never from who else asks.
      task_id: which task; only the scripted expert reads it.
      script: text of the entry script as it is now; only the scripted expert
        reads it, because a chat with `history_steps` shows an older one.
    """

    id: str
    messages: tuple[Message, ...]
    seed: int
    num_shared_turns: int = 0
    task_id: str = ""
    script: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """What a policy answered to one request.

    Attributes:
      request_id: `Request.id`.
      text: the reply without its end-of-turn token; "" after an error.
      finish: "stop": complete; "length": cut at the token limit;
        "prompt_too_long": never sampled; "error": see `error`.
      prompt_tokens: token ids of the prompt; empty if the policy has no tokens.
      tokens: sampled token ids, the final end-of-turn token included when
        `finish` is "stop"; empty if the policy has no tokens.
      logprobs: behaviour log-probability of each of `tokens`.
      error: why there is no reply, "" if there is one.
      seconds: from submission to completion.
      usage: counters of a policy without token ids, e.g. "prompt_tokens" and
        "reply_tokens" as an endpoint reported them.
    """

    request_id: str
    text: str
    finish: Finish
    prompt_tokens: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    error: str = ""
    seconds: float = 0.0
    usage: dict[str, float] = dataclasses.field(default_factory=dict[str, float])

    @property
    def is_answer(self) -> bool:
        """Whether the policy said anything."""
        return self.finish not in ("error", "prompt_too_long")


class Policy(Protocol):
    """Answers every submitted request exactly once; used from one thread."""

    name: str

    def submit(self, request: Request) -> None:
        """Queues `request` and returns at once."""
        ...

    def poll(self) -> list[Reply]:
        """Makes progress and returns the replies that are finished, maybe none."""
        ...

    def num_pending(self) -> int:
        """Returns how many submitted requests `poll` has not answered yet."""
        ...

    def close(self) -> None:
        """Frees threads, connections or device memory; pending requests are lost."""
        ...
