"""The editor of profile `mlab`: a policy between the agent and the worker pool.

A reply that asks for an edit in words needs a second reply, the editor's, before it
can be carried out. `EditingPool` looks like the pool that it wraps: it sends such a
reply to the editor first and hands it on with the answer; all others pass at once.
The editor may be any policy, also one on the accelerator of this process. Its calls
have a fixed seed and are cached on disk, so the same instruction on the same file
gives the same edit, and every call is kept in the record of its step.
"""

import dataclasses
import hashlib
import json
import time
from pathlib import Path

from mlagent_jax.config import EnvConfig
from mlagent_jax.env.pool_jobs import JobResult
from mlagent_jax.env.snapshots import SnapshotStore, write_atomically
from mlagent_jax.env.step_loop import Pool
from mlagent_jax.env.workspace import check_path
from mlagent_jax.errors import ActionError, DataError
from mlagent_jax.policy.base import Policy, Reply, Request
from mlagent_jax.text.editor import editor_prompt
from mlagent_jax.text.profiles import get_profile
from mlagent_jax.types import (
    ActionKind,
    EditorCall,
    Message,
    State,
    from_json,
    to_json,
)

_POLL_S = 5e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Asked:
    """A step that waits for the editor."""

    state: State
    reply: str
    prompt_hash: str
    start_s: float


class EditingPool:
    """A pool in which edits in words are made by `editor`.

    Args:
      pool: carries steps out; owned by the caller.
      editor: answers the prompts of `text.editor`; owned by the caller.
      store: the pool's snapshots; the editor's calls are cached beside them.
      cfg: profile and seed of the editor.
    """

    def __init__(
        self, pool: Pool, editor: Policy, store: SnapshotStore, cfg: EnvConfig
    ) -> None:
        self._pool = pool
        self._editor = editor
        self._store = store
        self._cfg = cfg
        self._profile = get_profile(cfg.profile)
        self._asked: dict[str, _Asked] = {}

    def submit(
        self, job_id: str, state: State, reply: str, edit: EditorCall | None = None
    ) -> None:
        """Queues one step; asks the editor first if the reply needs it.

        Raises:
          ValueError: a job of this id is pending.
        """
        messages = None if edit is not None else self._editor_prompt(state, reply)
        if messages is None:
            self._pool.submit(job_id, state, reply, edit)
            return
        if job_id in self._asked:
            raise ValueError(f"job {job_id!r} is pending already; use another id")
        prompt_hash = hash_prompt(messages)
        known = self._read_call(prompt_hash)
        if known is not None:
            self._pool.submit(job_id, state, reply, known)
            return
        self._asked[job_id] = _Asked(
            state=state,
            reply=reply,
            prompt_hash=prompt_hash,
            start_s=time.monotonic(),
        )
        self._editor.submit(
            Request(
                id=job_id,
                messages=messages,
                seed=self._cfg.editor_seed,
                task_id=state.task_id,
            )
        )

    def submit_reset(self, job_id: str, task_id: str) -> None:
        """Queues one reset."""
        self._pool.submit_reset(job_id, task_id)

    def poll(self, timeout_s: float) -> list[JobResult]:
        """Returns what is done, as soon as something is, or after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            replies = self._editor.poll() if self._editor.num_pending() else []
            failed = [f for f in map(self._take_answer, replies) if f is not None]
            remaining_s = max(0.0, deadline_s - time.monotonic())
            wait_s = min(_POLL_S, remaining_s) if self._asked else remaining_s
            if self._pool.num_pending():
                done = [*failed, *self._pool.poll(0.0 if failed else wait_s)]
            else:
                done = failed
                if self._asked and not failed:
                    time.sleep(wait_s)
            if done or not self.num_pending() or time.monotonic() >= deadline_s:
                return done

    def num_pending(self) -> int:
        """Returns how many jobs are not done."""
        return self._pool.num_pending() + len(self._asked)

    def _editor_prompt(self, state: State, reply: str) -> tuple[Message, ...] | None:
        """Returns what to ask the editor, None if the step can do without.

        An action that is invalid whatever the editor says is left to the environment.
        """
        try:
            action = self._profile.parse_reply(
                reply, max_chars=self._cfg.max_reply_chars
            )
            if action.kind is not ActionKind.ASK_EDIT:
                return None
            assert action.path is not None
            assert action.target is not None
            check_path(action.path, for_write=False)
            check_path(action.target, for_write=True)
        except ActionError:
            return None
        blob_id = self._store.manifest(state.snapshot).get(action.path)
        content = b"" if blob_id is None else self._store.get_blob(blob_id)
        text = content.decode(errors="replace")
        return editor_prompt(action.path, text, action.content)

    def _take_answer(self, answer: Reply) -> JobResult | None:
        """Hands a step on, or returns its failure if the editor failed."""
        asked = self._asked.pop(answer.request_id)
        if not answer.is_answer:
            return JobResult(
                job_id=answer.request_id,
                value=None,
                error=f"the editor failed: {answer.error or answer.finish}",
                seconds=time.monotonic() - asked.start_s,
            )
        call = EditorCall(
            model=self._editor.name,
            seed=self._cfg.editor_seed,
            prompt_hash=asked.prompt_hash,
            reply=answer.text,
            is_cached=False,
        )
        data = json.dumps(to_json(call)).encode()
        write_atomically(self._path(asked.prompt_hash), data)
        self._pool.submit(answer.request_id, asked.state, asked.reply, call)
        return None

    def _read_call(self, prompt_hash: str) -> EditorCall | None:
        """Returns the earlier call with this prompt, None if there is none."""
        path = self._path(prompt_hash)
        try:
            call = from_json(EditorCall, json.loads(path.read_bytes()), str(path))
        except (FileNotFoundError, ValueError, DataError):
            return None  # missing or damaged: the editor is asked again
        return dataclasses.replace(call, is_cached=True)

    def _path(self, prompt_hash: str) -> Path:
        key = f"{self._editor.name}\0{self._cfg.editor_seed}\0{prompt_hash}"
        name = hashlib.sha256(key.encode()).hexdigest()
        return self._store.root / "edits" / name[:2] / f"{name[2:]}.json"


def hash_prompt(messages: tuple[Message, ...]) -> str:
    """Returns the SHA-256 of a chat."""
    text = json.dumps([to_json(message) for message in messages])
    return hashlib.sha256(text.encode()).hexdigest()
