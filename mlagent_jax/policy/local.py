"""The policy that our own sampler runs: chats to tokens, tokens to replies."""

import time
from typing import Any

from jax.sharding import Mesh

from mlagent_jax.config import SampleConfig
from mlagent_jax.model.qwen2 import Params
from mlagent_jax.policy.base import Reply, Request
from mlagent_jax.sample.engine import Counters, Engine, Finished
from mlagent_jax.text.tokenizer import Tokenizer


class LocalPolicy:
    """A `Policy` over `sample.engine`; prompts beyond a limit are refused."""

    def __init__(
        self,
        *,
        name: str,
        graphdef: Any,
        params: Params,
        tokenizer: Tokenizer,
        cfg: SampleConfig,
        max_prompt_tokens: int,
        mesh: Mesh | None = None,
    ) -> None:
        """Prepares the sampler.

        Args:
          name: of the policy, in records and tables.
          graphdef: from `qwen2.make_graphdef`.
          params: weights.
          tokenizer: of the same model.
          cfg: decoding.
          max_prompt_tokens: a longer prompt is answered "prompt_too_long".
          mesh: devices of this replica of the weights.
        """
        self.name = name
        self._tokenizer = tokenizer
        self._max_prompt_tokens = max_prompt_tokens
        self._has_prefixes = cfg.num_prefixes > 0
        self._engine = Engine(
            graphdef,
            params,
            cfg,
            end_ids=(tokenizer.end_of_turn_id,),
            pad_id=tokenizer.pad_id,
            decode_text=tokenizer.decode,
            mesh=mesh,
        )
        self._prompts: dict[str, tuple[list[int], float]] = {}
        self._refused: list[Finished] = []

    @property
    def counters(self) -> Counters:
        """What the sampler has done so far."""
        return self._engine.counters

    def set_params(self, params: Params) -> None:
        """Replaces the weights; no request may be pending."""
        self._engine.set_params(params)

    def submit(self, request: Request) -> None:
        """Queues `request` and returns at once."""
        prompt = self._tokenizer.encode_chat(
            request.messages, add_generation_prompt=True
        )
        if len(prompt) > self._max_prompt_tokens:
            self._refused.append(
                Finished(
                    id=request.id, tokens=(), logprobs=(), finish="prompt_too_long"
                )
            )
        else:
            num_shared = self._num_shared(request, len(prompt))
            self._engine.submit(request.id, prompt, request.seed, num_shared)
        self._prompts[request.id] = prompt, time.monotonic()

    def poll(self) -> list[Reply]:
        """Runs the sampler for one round and returns the replies it finished."""
        refused, self._refused = self._refused, []
        return [self._to_reply(f) for f in [*refused, *self._engine.step()]]

    def num_pending(self) -> int:
        """Returns how many submitted requests `poll` has not answered yet."""
        return len(self._prompts)

    def release(self) -> None:
        """Frees device memory, until `set_params`; no request may be pending."""
        self._engine.release()

    def close(self) -> None:
        """Frees the cache; pending requests are lost."""
        self._engine.close()
        self._prompts = {}
        self._refused = []

    def _num_shared(self, request: Request, num_tokens: int) -> int:
        """Returns how many tokens of the prompt the shared turns are."""
        if not self._has_prefixes or not request.num_shared_turns:
            return 0
        if request.num_shared_turns >= len(request.messages):
            return num_tokens
        shared = request.messages[: request.num_shared_turns]
        return len(self._tokenizer.encode_chat(shared, add_generation_prompt=False))

    def _to_reply(self, finished: Finished) -> Reply:
        prompt, start_s = self._prompts.pop(finished.id)
        tokens = list(finished.tokens)
        if tokens and tokens[-1] == self._tokenizer.end_of_turn_id:
            tokens.pop()
        text = self._tokenizer.decode(tokens)
        if finished.stop:
            text = text[: text.index(finished.stop)]
        return Reply(
            request_id=finished.id,
            text=text,
            finish=finished.finish,
            prompt_tokens=tuple(prompt),
            tokens=finished.tokens,
            logprobs=finished.logprobs,
            seconds=time.monotonic() - start_s,
        )
