"""Continuous batching: requests in, finished replies out, rows refilled in between.

The engine owns the queue and the lanes (`sample.lane`), which own the rows of the
cache. One `step` gives waiting requests to lanes that are not running, starts those,
waits for one and collects what is finished there. With one lane that happens in the
caller's thread; several run in threads, each while the others are collected.

A request whose prompt starts like one that some row of its lane still holds, live or
not, copies that part of the cache; samples of one state pay for one prefill a lane.
What a request declares as shared is kept once a lane for all that start with it, and
read once a step. Replies do not depend on who sits where, on what is copied or on who
shares: same weights, tokens, declared length and seed, same reply, bit for bit.

Not for text (policy/local.py) and not for several hosts (parallel/hosts.py).
"""

import bisect
import collections
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from mlagent_jax.config import SampleConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.model import qwen2
from mlagent_jax.model.decoder import DecoderWeights
from mlagent_jax.sample.cpu_layout import best_num_lanes
from mlagent_jax.sample.lane import Lane, PromptRequest, RowOutput
from mlagent_jax.sample.programs import make_programs

Decoder = Callable[[Sequence[int]], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """The reply to one request.

    Attributes:
      id: of the request.
      tokens: sampled ids. The last one is an end id if that ended the reply; after
        a stop string, it is the token that completed the string.
      logprobs: behaviour log-probability of each of `tokens`.
      finish: "stop": by an end id or a stop string; "length": cut;
        "prompt_too_long": never sampled.
      stop: the stop string that ended the reply, "" if none did.
    """

    id: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length", "prompt_too_long"]
    stop: str = ""


@dataclasses.dataclass(kw_only=True)
class Counters:
    """What an engine has done so far; for benchmarks and logs.

    Attributes:
      prompt_tokens: tokens of admitted prompts.
      reused_tokens: those of them that were copied from another row.
      reply_tokens: tokens of finished replies.
      replies: finished replies.
      visits: calls of `step` that ran the device.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    reply_tokens: int = 0
    replies: int = 0
    visits: int = 0


class Engine:
    """Samples replies to prompts with one set of weights; used from one thread."""

    def __init__(
        self,
        graphdef: Any,
        params: qwen2.Params,
        cfg: SampleConfig,
        *,
        end_ids: Sequence[int],
        pad_id: int,
        decode_text: Decoder | None = None,
        mesh: Mesh | None = None,
        num_lanes: int | None = None,
    ) -> None:
        """Prepares an engine; device memory is taken when the first request runs.

        Args:
          graphdef: from `qwen2.make_graphdef`.
          params: weights; see `set_params`.
          cfg: decoding.
          end_ids: tokens that end a reply and belong to it.
          pad_id: fills prompts.
          decode_text: tokens to text, to find stop strings.
          mesh: devices of this replica; the cache is split over its tensor axis.
          num_lanes: into how many lanes the rows are cut, a divisor of
            `cfg.num_slots`; None takes what is fastest here, which depends on the
            cores. How many rows a lane has may change the last bits of
            log-probabilities.

        Raises:
          ConfigError: `cfg.stop` is given without `decode_text`, or holds ""; or the
            lanes do not divide the rows.
        """
        if cfg.stop and decode_text is None:
            raise ConfigError(
                f"sample.stop = {cfg.stop}: finding strings needs `decode_text`"
            )
        if "" in cfg.stop:
            raise ConfigError(f"sample.stop = {cfg.stop}: an empty string always stops")
        self._cfg = cfg
        self._pad_id = pad_id
        self._decode_text = decode_text
        self._end_ids = tuple(end_ids)
        model_cfg = qwen2.config_of(graphdef, params)
        if num_lanes is None:
            num_lanes = best_num_lanes(model_cfg, cfg.num_slots, mesh)
        if num_lanes < 1 or cfg.num_slots % num_lanes:
            raise ConfigError(
                f"num_lanes = {num_lanes}: expected a divisor of sample.num_slots = "
                f"{cfg.num_slots}"
            )
        lane_cfg = dataclasses.replace(
            cfg,
            num_slots=cfg.num_slots // num_lanes,
            num_prefixes=-(-cfg.num_prefixes // num_lanes),
        )
        self._programs = make_programs(model_cfg, lane_cfg, self._end_ids, mesh)
        self._lanes = [Lane(self._programs, lane_cfg, pad_id) for _ in range(num_lanes)]
        self._threads = ThreadPoolExecutor(num_lanes) if num_lanes > 1 else None
        self._running: dict[Lane, Future[list[RowOutput]]] = {}
        self._capacities = (0, 0)
        self._weights: DecoderWeights | None = None
        self._submitted: list[PromptRequest] = []
        self._waiting: collections.deque[PromptRequest] = collections.deque()
        self._rejected: list[Finished] = []
        self._pending_ids: set[str] = set()
        self.counters = Counters()
        self.set_params(params)

    def set_params(self, params: qwen2.Params) -> None:
        """Replaces the weights; what the cache holds of the old ones is dropped.

        The engine keeps a copy of its own, in the model's compute dtype.

        Args:
          params: weights, float32 or the compute dtype.

        Raises:
          RuntimeError: requests are being decoded; their replies would mix weights.
        """
        if any(lane.is_used for lane in self._lanes):
            raise RuntimeError("set_params: replies are being decoded; finish them")
        self._weights = None  # makes room for the new copy
        self._weights = self._programs.fuse(params)
        for lane in self._lanes:
            lane.drop_prefixes()

    def submit(
        self, request_id: str, tokens: Sequence[int], seed: int, num_shared: int = 0
    ) -> None:
        """Queues a prompt.

        Args:
          request_id: names the reply; unique among pending requests.
          tokens: the prompt, at least one token.
          seed: determines the reply together with the prompt; any integer, used
            modulo 2**64.
          num_shared: how many of its first tokens other requests are likely to start
            with, too; of use where `cfg.num_prefixes` is not 0. May change the last
            bits of log-probabilities, so it should follow from the prompt alone.

        Raises:
          ValueError: no token, the id is pending, or `num_shared` is negative.
        """
        if not tokens:
            raise ValueError(f"request {request_id!r}: the prompt has no token")
        if request_id in self._pending_ids:
            raise ValueError(f"request {request_id!r} is already pending")
        if num_shared < 0:
            raise ValueError(f"request {request_id!r}: num_shared = {num_shared} < 0")
        self._pending_ids.add(request_id)
        if len(tokens) > self._cfg.prompt_buckets[-1]:
            self._rejected.append(
                Finished(
                    id=request_id, tokens=(), logprobs=(), finish="prompt_too_long"
                )
            )
            return
        seed %= 1 << 64
        key_data = (seed >> 32, seed & 0xFFFFFFFF)
        prompt_T = np.asarray(tokens, np.int32)
        num_shared = self._num_kept(num_shared, len(tokens) - 1)
        start = prompt_T[: num_shared or self._cfg.prefill_chunk].tobytes()
        self._submitted.append(
            PromptRequest(request_id, prompt_T, key_data, num_shared, start)
        )

    def num_pending(self) -> int:
        """Returns how many submitted requests `step` has not returned yet."""
        return len(self._pending_ids)

    def step(self) -> list[Finished]:
        """Makes one round of progress and returns what is finished, maybe nothing.

        Raises:
          RuntimeError: requests wait, and the weights were released.
        """
        finished, self._rejected = self._rejected, []
        if not self._waiting and self._submitted:
            self._waiting.extend(_in_order(self._submitted))
            self._submitted = []
        weights = self._weights
        if self._waiting and weights is None:
            raise RuntimeError("step: the weights were released; call set_params")
        self._share_out()
        for lane in self._lanes:
            if weights and lane.is_used and lane not in self._running:
                self._running[lane] = self._start(lane, weights)
        if self._running:
            wait(self._running.values(), return_when=FIRST_COMPLETED)
        for lane in [lane for lane, call in self._running.items() if call.done()]:
            finished += self._collect(lane, self._running.pop(lane).result())
            self.counters.visits += 1
        self._pending_ids -= {reply.id for reply in finished}
        return finished

    def release(self) -> None:
        """Frees weights and cache, until `set_params`; pending requests are lost."""
        self.close()
        self._weights = None

    def close(self) -> None:
        """Frees the cache and forgets pending requests."""
        wait(self._running.values())
        self._running = {}
        for lane in self._lanes:
            lane.close()
        self._capacities = (0, 0)
        self._submitted = []
        self._waiting.clear()
        self._rejected = []
        self._pending_ids = set()

    def _num_kept(self, num_shared: int, num_cached: int) -> int:
        """Returns how many declared tokens the store keeps: whole chunks or all."""
        if not self._cfg.num_prefixes:
            return 0
        if num_shared >= num_cached:
            return num_cached
        return num_shared - num_shared % self._cfg.prefill_chunk

    def _share_out(self) -> None:
        """Gives waiting requests to the free rows of lanes that are not running."""
        if self._waiting:
            longest = max(len(r.tokens_T) - r.num_shared for r in self._waiting)
            longest_shared = max(r.num_shared for r in self._waiting)
            capacity, prefix_capacity = self._capacities
            self._capacities = (
                max(capacity, self._bucket(longest) + self._cfg.max_reply_tokens),
                max(prefix_capacity, self._bucket(longest_shared)),
            )
        idle = [lane for lane in self._lanes if lane not in self._running]
        for num_taken, lane in enumerate(idle):
            # No more than leaves as much to the idle lanes that follow.
            share = -(-len(self._waiting) // (len(idle) - num_taken))
            for _ in range(min(lane.num_free, share)):
                request = self._next_for(lane)
                if request is None:
                    break
                self._waiting.remove(request)
                self.counters.prompt_tokens += len(request.tokens_T)
                self.counters.reused_tokens += lane.take(request)

    def _bucket(self, num_tokens: int) -> int:
        """Returns the size, one of few, that the cache has for so many tokens."""
        return next(b for b in (1, *self._cfg.prompt_buckets) if b >= num_tokens)

    def _next_for(self, lane: Lane) -> PromptRequest | None:
        """Returns the next request, of those whose prefix is in the lane if any.

        Every other lane takes requests from the end, where prompts are short: rows of
        one lane are then more alike, and a step costs what its longest row costs.
        """
        is_from_end = self._lanes.index(lane) % 2 == 1
        order = reversed(self._waiting) if is_from_end else self._waiting
        held = lane.starts()
        first = None
        for request in order:
            if lane.has_place(request):
                if request.start in held:
                    return request
                first = first or request
        return first

    def _start(self, lane: Lane, weights: DecoderWeights) -> Future[list[RowOutput]]:
        if self._threads is not None:
            return self._threads.submit(lane.run, weights, *self._capacities)
        call: Future[list[RowOutput]] = Future()
        call.set_result(lane.run(weights, *self._capacities))
        return call

    def _collect(self, lane: Lane, outputs: Sequence[RowOutput]) -> list[Finished]:
        """Returns what is finished and frees its rows."""
        finished: list[Finished] = []
        for output in outputs:
            num_kept, stop = self._find_stop(output.tokens)
            if output.is_live and not stop:
                continue
            tokens = output.tokens[:num_kept]
            is_stop = bool(stop) or tokens[-1] in self._end_ids
            finished.append(
                Finished(
                    id=output.request.id,
                    tokens=tuple(tokens),
                    logprobs=tuple(output.logprobs_T[:num_kept].tolist()),
                    finish="stop" if is_stop else "length",
                    stop=stop,
                )
            )
            lane.free(output.row)
            self.counters.replies += 1
            self.counters.reply_tokens += num_kept
        return finished

    def _find_stop(self, tokens: list[int]) -> tuple[int, str]:
        """Returns (tokens up to the first stop string, that string or "")."""
        if self._decode_text is None or not self._cfg.stop:
            return len(tokens), ""
        decode_text = self._decode_text

        def find(num_tokens: int) -> str:
            text = decode_text(tokens[:num_tokens])
            places = {stop: text.find(stop) for stop in self._cfg.stop}
            found = [stop for stop, place in places.items() if place >= 0]
            return min(found, key=lambda stop: places[stop], default="")

        if not find(len(tokens)):
            return len(tokens), ""
        num_kept = bisect.bisect_left(
            range(len(tokens)), True, key=lambda num_tokens: find(num_tokens) != ""
        )
        return num_kept, find(num_kept)


def _in_order(requests: Sequence[PromptRequest]) -> list[PromptRequest]:
    """Returns requests with long prompts first; `_next_for` takes from both ends.

    A decode step costs what its longest row costs, so rows of about one length
    should meet; and those that share a first chunk follow each other, while some
    row still holds it. Requests submitted later wait for all of these.
    """
    longest: dict[bytes, int] = {}
    for request in requests:
        num_tokens = len(request.tokens_T)
        longest[request.start] = max(longest.get(request.start, 0), num_tokens)
    return sorted(
        requests, key=lambda r: (-longest[r.start], r.start, -len(r.tokens_T))
    )
