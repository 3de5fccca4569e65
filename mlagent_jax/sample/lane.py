"""Rows of the cache that are decoded together: who sits where, and the device calls.

A lane knows nothing of queues, stop strings or other lanes. Between two calls of `run`
requests take over free rows; `run` prefills them (one device call), runs some decode
steps (one device call) and fetches what every used row has so far (one transfer).

Several lanes cost more weight traffic than one of as many rows; `cpu_layout` says where
they pay. A lane's decode step costs what its own longest row costs.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from mlagent_jax.config import SampleConfig
from mlagent_jax.model.cache import Readers
from mlagent_jax.model.decoder import DecoderWeights
from mlagent_jax.sample import decode
from mlagent_jax.sample.prefixes import PrefixStore, PrefixTable
from mlagent_jax.sample.programs import Programs


@dataclasses.dataclass(frozen=True, eq=False)
class PromptRequest:
    """A prompt that waits for a row.

    Attributes:
      id: names the reply.
      tokens_T: int32, at least one.
      key_data: threefry key, two words.
      num_shared: how many of its tokens lie in the store of prefixes, 0 for none.
      start: what is shared or else its first chunk, as bytes: requests with one start
        share a prefill.
    """

    id: str
    tokens_T: np.ndarray
    key_data: tuple[int, int]
    num_shared: int
    start: bytes


@dataclasses.dataclass(frozen=True, eq=False)
class RowOutput:
    """What a row has sampled so far.

    Attributes:
      row: of the lane.
      request: that sits there.
      tokens: sampled ids.
      logprobs_T: float32, behaviour log-probability of each.
      is_live: whether the device goes on with it.
    """

    row: int
    request: PromptRequest
    tokens: list[int]
    logprobs_T: np.ndarray
    is_live: bool


class Lane:
    """Some rows and their cache; used from one thread at a time."""

    def __init__(self, programs: Programs, cfg: SampleConfig, pad_id: int) -> None:
        """Makes a lane without requests; device memory is taken by the first `run`.

        Args:
          programs: made for `cfg`.
          cfg: decoding; `num_slots` is the number of rows.
          pad_id: fills prompts.
        """
        self._programs = programs
        self._cfg = cfg
        self._pad_id = pad_id
        chunk_size = cfg.prefill_chunk
        self._longest = -(-cfg.prompt_buckets[-1] // chunk_size) * chunk_size
        self._table = PrefixTable(cfg.num_slots, self._longest, chunk_size)
        self._store: PrefixStore | None = None
        if cfg.num_prefixes:
            self._store = PrefixStore(
                cfg.num_prefixes,
                min(cfg.prefix_readers, cfg.num_slots),
                self._longest,
                chunk_size,
            )
        self.close()

    @property
    def num_free(self) -> int:
        """How many requests the lane can take now."""
        return len(self._free)

    @property
    def is_used(self) -> bool:
        """Whether any request sits in the lane."""
        return len(self._free) < self._cfg.num_slots

    def starts(self) -> set[bytes | None]:
        """Returns the first chunks of the prompts, live or not, that rows hold."""
        return set(self._starts)

    def has_place(self, request: PromptRequest) -> bool:
        """Returns whether a free row could take `request`, for its prefix's sake."""
        if self._store is None or not request.num_shared:
            return True
        return self._store.has_place(_prefix(request))

    def take(self, request: PromptRequest) -> int:
        """Gives `request` a free row; returns how many tokens need no prefill."""
        source, num_copied = self._table.find(request.tokens_T, request.num_shared)
        # Taking over the source itself leaves the prefixes of other rows alone.
        is_own = num_copied > 0 and source in self._free
        row = source if is_own else self._free[0]
        self._free.remove(row)
        self._rows[row] = request
        self._starts[row] = request.start
        self._table.put(row, request.tokens_T, request.num_shared)
        prefix = (self._cfg.num_prefixes, 0, 0)  # none
        if self._store is not None and request.num_shared:
            prefix = self._store.take(row, _prefix(request))
        self._taken.append((request, (row, source, num_copied), prefix))
        return num_copied + prefix[2]

    def run(
        self, weights: DecoderWeights, capacity: int, prefix_capacity: int
    ) -> list[RowOutput]:
        """Prefills what was taken, decodes, and returns what is in every used row.

        Args:
          weights: of every `run` since `drop_prefixes`.
          capacity: tokens of the longest prompt, without what is shared, and reply;
            the cache grows to it.
          prefix_capacity: tokens of the longest shared prefix, likewise.
        """
        capacities = capacity, prefix_capacity
        if self._state is None:
            self._state = self._programs.init(*capacities)
        elif capacities != self._capacities:
            self._state = self._programs.grow(self._state, *capacities)
        self._capacities = capacities
        if self._taken:
            admission = self._admission()
            self._state = self._programs.prefill(weights, self._state, admission)
            self._taken = []
        keep_B = np.array([request is not None for request in self._rows])
        keep_B, readers = self._programs.put((keep_B, self._readers()))
        state = self._programs.decode(weights, self._state, keep_B, readers)
        self._state = state
        is_live_B, counts_B, reply_BT, logprobs_BT = jax.device_get(
            (state.is_live_B, state.counts_B, state.reply_BT, state.logprobs_BT)
        )
        return [
            RowOutput(
                row=row,
                request=request,
                tokens=reply_BT[row, : counts_B[row]].tolist(),
                logprobs_T=logprobs_BT[row, : counts_B[row]],
                is_live=bool(is_live_B[row]),
            )
            for row, request in enumerate(self._rows)
            if request is not None
        ]

    def free(self, row: int) -> None:
        """Ends the request in `row`; its prompt stays for others to copy."""
        self._rows[row] = None
        self._free.append(row)
        if self._store is not None:
            self._store.free(row)

    def drop_prefixes(self) -> None:
        """Forgets what the rows hold, because new weights do not go with it."""
        self._table.clear()
        if self._store is not None:
            self._store.clear()
        self._starts: list[bytes | None] = [None] * self._cfg.num_slots

    def close(self) -> None:
        """Frees the cache and forgets all requests."""
        self._state: decode.DecodeState | None = None
        self._capacities = (0, 0)
        self._rows: list[PromptRequest | None] = [None] * self._cfg.num_slots
        self._free = list(range(self._cfg.num_slots))
        if self._store is not None:
            for row in self._free:
                self._store.free(row)
        # Requests to prefill; for their own part and for the shared one: (row, row to
        # copy from, tokens to copy).
        self._taken: list[
            tuple[PromptRequest, tuple[int, int, int], tuple[int, int, int]]
        ] = []
        self.drop_prefixes()

    def _readers(self) -> Readers | None:
        if self._store is None:
            return None
        rows_PN, places_B = self._store.readers(self._cfg.num_slots)
        arrays: dict[str, Any] = {"rows_PN": rows_PN, "places_B": places_B}
        return Readers(**arrays)

    def _admission(self) -> decode.Admission:
        R = self._cfg.num_slots
        lengths_R, num_shared_R = np.zeros((2, R), np.int32)
        tokens_RT = np.full((R, self._longest), self._pad_id, np.int32)
        key_data_R2 = np.zeros((R, 2), np.uint32)
        own_R3, shared_R3 = np.zeros((2, R, 3), np.int32)
        for index, (request, own, shared) in enumerate(self._taken):
            length = len(request.tokens_T)
            tokens_RT[index, :length] = request.tokens_T
            lengths_R[index], num_shared_R[index] = length, request.num_shared
            key_data_R2[index] = request.key_data
            own_R3[index], shared_R3[index] = own, shared

        def places(places_R3: np.ndarray) -> decode.Places:
            names = ("rows_R", "sources_R", "num_copied_R")
            return decode.Places(**dict(zip(names, places_R3.T, strict=True)))

        arrays: dict[str, Any] = {
            "num": np.int32(len(self._taken)),
            "tokens_RT": tokens_RT,
            "lengths_R": lengths_R,
            "num_shared_R": num_shared_R,
            "key_data_R2": key_data_R2,
        }
        return self._programs.put(
            decode.Admission(
                **arrays,
                rows=places(own_R3),
                prefixes=None if self._store is None else places(shared_R3),
            )
        )


def _prefix(request: PromptRequest) -> np.ndarray:
    """Returns the shared tokens and the one behind them."""
    return request.tokens_T[: request.num_shared + 1]
