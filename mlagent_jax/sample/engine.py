"""Continuous batching: requests in, finished replies out, rows refilled in between.

The engine owns the rows of a `DecodeState`. One `step` admits waiting requests into
free rows (one device call that prefills them), runs a fixed number of decode steps
(one device call), and collects what is finished (one transfer). Three programs are
compiled in all, each once a cache capacity.

A request whose prompt starts like one that some row still holds, live or not,
copies that part of the cache; samples of one state pay for one prefill. Replies do
not depend on any of this: same weights, tokens and seed, same reply, bit for bit.

Not for text (policy/local.py) and not for several hosts (parallel/hosts.py).
"""

import bisect
import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from mlagent_jax.config import SampleConfig
from mlagent_jax.errors import ConfigError
from mlagent_jax.model import qwen2
from mlagent_jax.model.decoder import DecoderWeights
from mlagent_jax.sample import decode
from mlagent_jax.sample.prefixes import PrefixTable
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


@dataclasses.dataclass(frozen=True)
class _Request:
    id: str
    tokens: np.ndarray
    key_data: tuple[int, int]


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

        Raises:
          ConfigError: `cfg.stop` is given without `decode_text`, or holds "".
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
        self._programs = make_programs(model_cfg, cfg, self._end_ids, mesh)
        self._state: decode.DecodeState | None = None
        self._weights: DecoderWeights | None = None
        self._submitted: list[_Request] = []
        self._waiting: collections.deque[_Request] = collections.deque()
        self._rejected: list[Finished] = []
        self._rows: list[_Request | None] = [None] * cfg.num_slots
        self._free = collections.deque(range(cfg.num_slots))
        self._pending_ids: set[str] = set()
        chunk_size = cfg.prefill_chunk
        self._longest = -(-cfg.prompt_buckets[-1] // chunk_size) * chunk_size
        self._prefixes = PrefixTable(cfg.num_slots, self._longest, chunk_size)
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
        if any(request is not None for request in self._rows):
            raise RuntimeError("set_params: replies are being decoded; finish them")
        self._weights = None  # makes room for the new copy
        self._weights = self._programs.fuse(params)
        self._prefixes.clear()

    def submit(self, request_id: str, tokens: Sequence[int], seed: int) -> None:
        """Queues a prompt.

        Args:
          request_id: names the reply; unique among pending requests.
          tokens: the prompt, at least one token.
          seed: determines the reply together with the prompt; any integer, used
            modulo 2**64.

        Raises:
          ValueError: no token, or the id is pending.
        """
        if not tokens:
            raise ValueError(f"request {request_id!r}: the prompt has no token")
        if request_id in self._pending_ids:
            raise ValueError(f"request {request_id!r} is already pending")
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
        prompt = np.asarray(tokens, np.int32)
        self._submitted.append(_Request(request_id, prompt, key_data))

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
            self._waiting.extend(_in_order(self._submitted, self._cfg.prefill_chunk))
            self._submitted = []
        if self._waiting and self._free:
            self._admit()
        is_used_B = np.array([request is not None for request in self._rows])
        if is_used_B.any():
            keep_B = self._programs.put(is_used_B)
            self._state = self._programs.decode(self._weights, self._state, keep_B)
            self.counters.visits += 1
            finished += self._collect(self._state)
        self._pending_ids -= {reply.id for reply in finished}
        return finished

    def release(self) -> None:
        """Frees weights and cache, until `set_params`; pending requests are lost."""
        self.close()
        self._weights = None

    def close(self) -> None:
        """Frees the cache and forgets pending requests."""
        self._state = None
        self._submitted = []
        self._waiting.clear()
        self._rejected = []
        self._pending_ids = set()
        self._rows = [None] * self._cfg.num_slots
        self._free = collections.deque(range(self._cfg.num_slots))
        self._prefixes.clear()

    def _admit(self) -> None:
        """Moves waiting requests into free rows and prefills them.

        Raises:
          RuntimeError: the weights were released.
        """
        if self._weights is None:
            raise RuntimeError("step: the weights were released; call set_params")
        self._reserve(max(len(request.tokens) for request in self._waiting))
        R = self._cfg.num_slots
        rows_R, lengths_R, sources_R, starts_R = np.zeros((4, R), np.int32)
        tokens_RT = np.full((R, self._longest), self._pad_id, np.int32)
        key_data_R2 = np.zeros((R, 2), np.uint32)
        num = min(len(self._waiting), len(self._free))
        for index in range(num):
            request = self._waiting.popleft()
            row, source, start = self._take_row(request)
            length = len(request.tokens)
            tokens_RT[index, :length] = request.tokens
            rows_R[index], lengths_R[index] = row, length
            sources_R[index], starts_R[index] = source, start
            key_data_R2[index] = request.key_data
            self.counters.prompt_tokens += length
            self.counters.reused_tokens += start
        arrays = {
            "num": np.int32(num),
            "rows_R": rows_R,
            "tokens_RT": tokens_RT,
            "lengths_R": lengths_R,
            "sources_R": sources_R,
            "starts_R": starts_R,
            "key_data_R2": key_data_R2,
        }
        admission = decode.Admission(**self._programs.put(arrays))
        self._state = self._programs.prefill(self._weights, self._state, admission)

    def _reserve(self, prompt_tokens: int) -> None:
        """Makes every row long enough for such a prompt and its reply."""
        bucket = next(b for b in self._cfg.prompt_buckets if b >= prompt_tokens)
        capacity = bucket + self._cfg.max_reply_tokens
        if self._state is None:
            self._state = self._programs.init(capacity)
        elif self._state.cache.capacity < capacity:
            self._state = self._programs.grow(self._state, capacity)

    def _take_row(self, request: _Request) -> tuple[int, int, int]:
        """Returns (row given to `request`, row to copy a prefix from, its length)."""
        source, start = self._prefixes.find(request.tokens)
        # Taking over the source itself leaves the prefixes of other rows alone.
        row = source if start > 0 and source in self._free else self._free[0]
        self._free.remove(row)
        self._rows[row] = request
        self._prefixes.put(row, request.tokens)
        return row, source, start

    def _collect(self, state: decode.DecodeState) -> list[Finished]:
        """Returns what is finished and frees its rows."""
        is_live_B, counts_B, reply_BT, logprobs_BT = jax.device_get(
            (state.is_live_B, state.counts_B, state.reply_BT, state.logprobs_BT)
        )
        finished: list[Finished] = []
        for row, request in enumerate(self._rows):
            if request is None:
                continue
            tokens: list[int] = reply_BT[row, : counts_B[row]].tolist()
            num_kept, stop = self._find_stop(tokens)
            if is_live_B[row] and not stop:
                continue
            tokens = tokens[:num_kept]
            is_stop = bool(stop) or tokens[-1] in self._end_ids
            finished.append(
                Finished(
                    id=request.id,
                    tokens=tuple(tokens),
                    logprobs=tuple(logprobs_BT[row, :num_kept].tolist()),
                    finish="stop" if is_stop else "length",
                    stop=stop,
                )
            )
            self._rows[row] = None
            self._free.append(row)
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


def _in_order(requests: Sequence[_Request], chunk_size: int) -> list[_Request]:
    """Returns requests in the order in which they get rows: long prompts first.

    A decode step costs what its longest row costs, so rows of about one length
    should meet; and those that share a first chunk follow each other, while some
    row still holds it. Requests submitted later wait for all of these.
    """
    starts = [request.tokens[:chunk_size].tobytes() for request in requests]
    longest: dict[bytes, int] = {}
    for start, request in zip(starts, requests, strict=True):
        longest[start] = max(longest.get(start, 0), len(request.tokens))
    order = sorted(
        range(len(requests)),
        key=lambda i: (-longest[starts[i]], starts[i], -len(requests[i].tokens)),
    )
    return [requests[i] for i in order]
