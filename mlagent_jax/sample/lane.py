"""Rows of the cache that are decoded together: who sits where, and the device calls.

A lane knows nothing of queues, stop strings or other lanes. Between two calls of `run`
requests take over free rows; `run` prefills them (one device call), runs some decode
steps (one device call) and fetches what every used row has so far (one transfer).

Several lanes cost more weight traffic than one of as many rows, and XLA's products of
few rows occupy one core of a CPU: there lanes in threads of their own pay for small
models (BUILD_NOTES.md, "Speed"). A lane's decode step costs what its own longest row
costs.
"""

import dataclasses
import os

import jax
import numpy as np
from jax.sharding import Mesh

from mlagent_jax.config import ModelConfig, SampleConfig
from mlagent_jax.model import qwen2
from mlagent_jax.model.decoder import DecoderWeights
from mlagent_jax.sample import decode
from mlagent_jax.sample.prefixes import PrefixTable
from mlagent_jax.sample.programs import Programs

_FEWEST_ROWS = 4  # Two lanes of 4 take 0.72 times as long as one of 8.
_MOST_WEIGHT_BYTES = 32 * 2**20  # With 20 MB two lanes win, with 78 they lose.


@dataclasses.dataclass(frozen=True, eq=False)
class PromptRequest:
    """A prompt that waits for a row.

    Attributes:
      id: names the reply.
      tokens_T: int32, at least one.
      key_data: threefry key, two words.
      start: its first chunk, as bytes: requests with one start share a prefill.
    """

    id: str
    tokens_T: np.ndarray
    key_data: tuple[int, int]
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
        self._prefixes = PrefixTable(cfg.num_slots, self._longest, chunk_size)
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

    def take(self, request: PromptRequest) -> int:
        """Gives `request` a free row; returns how many tokens need no prefill."""
        source, num_shared = self._prefixes.find(request.tokens_T)
        # Taking over the source itself leaves the prefixes of other rows alone.
        is_own = num_shared > 0 and source in self._free
        row = source if is_own else self._free[0]
        self._free.remove(row)
        self._rows[row] = request
        self._starts[row] = request.start
        self._prefixes.put(row, request.tokens_T)
        self._taken.append((request, row, source, num_shared))
        return num_shared

    def run(self, weights: DecoderWeights, capacity: int) -> list[RowOutput]:
        """Prefills what was taken, decodes, and returns what is in every used row.

        Args:
          weights: of every `run` since `drop_prefixes`.
          capacity: tokens of the longest prompt and reply; the cache grows to it.
        """
        if self._state is None:
            self._state = self._programs.init(capacity)
        elif self._state.cache.capacity < capacity:
            self._state = self._programs.grow(self._state, capacity)
        if self._taken:
            admission = self._admission()
            self._state = self._programs.prefill(weights, self._state, admission)
            self._taken = []
        keep_B = np.array([request is not None for request in self._rows])
        state = self._programs.decode(weights, self._state, self._programs.put(keep_B))
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

    def drop_prefixes(self) -> None:
        """Forgets what the rows hold, because new weights do not go with it."""
        self._prefixes.clear()
        self._starts: list[bytes | None] = [None] * self._cfg.num_slots

    def close(self) -> None:
        """Frees the cache and forgets all requests."""
        self._state: decode.DecodeState | None = None
        self._rows: list[PromptRequest | None] = [None] * self._cfg.num_slots
        self._free = list(range(self._cfg.num_slots))
        # Requests to prefill: (request, row, row to copy from, tokens to copy).
        self._taken: list[tuple[PromptRequest, int, int, int]] = []
        self.drop_prefixes()

    def _admission(self) -> decode.Admission:
        R = self._cfg.num_slots
        rows_R, lengths_R, sources_R, starts_R = np.zeros((4, R), np.int32)
        tokens_RT = np.full((R, self._longest), self._pad_id, np.int32)
        key_data_R2 = np.zeros((R, 2), np.uint32)
        for index, (request, row, source, num_shared) in enumerate(self._taken):
            length = len(request.tokens_T)
            tokens_RT[index, :length] = request.tokens_T
            rows_R[index], lengths_R[index] = row, length
            sources_R[index], starts_R[index] = source, num_shared
            key_data_R2[index] = request.key_data
        arrays = {
            "num": np.int32(len(self._taken)),
            "rows_R": rows_R,
            "tokens_RT": tokens_RT,
            "lengths_R": lengths_R,
            "sources_R": sources_R,
            "starts_R": starts_R,
            "key_data_R2": key_data_R2,
        }
        return decode.Admission(**self._programs.put(arrays))


def best_num_lanes(
    model_cfg: ModelConfig, num_slots: int, mesh: Mesh | None = None
) -> int:
    """Returns into how many lanes of equal size to cut `num_slots` rows.

    Args:
      model_cfg: the model.
      num_slots: rows in all.
      mesh: devices of the replica, None for the default device.
    """
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    if (mesh is not None and mesh.size > 1) or device.platform != "cpu":
        return 1
    width = np.dtype(model_cfg.compute_dtype).itemsize
    shapes = jax.tree.leaves(qwen2.abstract_params(model_cfg))
    if width * sum(leaf.size for leaf in shapes) > _MOST_WEIGHT_BYTES:
        return 1
    most = max(1, min(_num_cores(), num_slots // _FEWEST_ROWS))
    return max(num for num in range(1, most + 1) if num_slots % num == 0)


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
