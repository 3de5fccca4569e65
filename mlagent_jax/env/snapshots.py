"""Content-addressed workspace snapshots: every state of a run can be restored.

A blob has the SHA-256 of its bytes for a name. Small ones lie in packs (env/packs.py),
a larger one is a file of that name in a folder named by the first two letters. A
snapshot is a blob too: the sorted JSON object path -> blob id. Equal files are stored
once, so a step costs the files it changed, and any process may write while others
read. This module knows nothing of what the files mean.
"""

import hashlib
import json
import os
import re
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from mlagent_jax.env.packs import PackFolder
from mlagent_jax.errors import DataError, EnvUnavailableError
from mlagent_jax.types import from_json

_BLOB_ID = re.compile(r"[0-9a-f]{64}")
_DEFAULT_MEMORY_BYTES = 32 << 20
# A file wastes half a block of the disk, 2 KiB: of these at most an eighth.
_MAX_PACKED_BYTES = 16 << 10


class SnapshotStore:
    """Files and workspaces by the hash of their content.

    Blobs read or written lately stay in memory, so restoring a state beside a
    recent one reads only the files that differ.
    """

    def __init__(
        self,
        root: Path,
        *,
        fsync: bool = False,
        memory_bytes: int = _DEFAULT_MEMORY_BYTES,
    ) -> None:
        """Opens the store in `root`, which need not exist yet.

        Args:
          root: folder of the store; blobs lie in `root/packs` and `root/blobs`.
          fsync: wait for the disk after each write, so that a blob survives a power
            cut; without it only the death of a process is covered.
          memory_bytes: how many bytes of recent blobs to keep in memory.
        """
        self.root = root
        self._packs = PackFolder(root / "packs", fsync=fsync)
        self._blobs_dir = root / "blobs"
        self._fsync = fsync
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._recent_bytes = 0
        self._memory_bytes = memory_bytes

    def put_blob(self, data: bytes) -> str:
        """Stores `data` and returns its id.

        Raises:
          EnvUnavailableError: the disk is full or not writable.
        """
        blob_id = hashlib.sha256(data).hexdigest()
        if blob_id in self._recent:
            return blob_id
        path = self._path(blob_id)
        key = bytes.fromhex(blob_id)
        if len(data) <= _MAX_PACKED_BYTES:
            if self._packs.where(key) is None:
                self._packs.put(key, data)
        # A file of another size is the stump of a crash without fsync: heal it.
        elif not path.exists() or path.stat().st_size != len(data):
            write_atomically(path, data, fsync=self._fsync)
        self._remember(blob_id, data)
        return blob_id

    def get_blob(self, blob_id: str) -> bytes:
        """Returns the bytes stored as `blob_id`.

        Raises:
          DataError: there is no such blob, or its bytes do not match its id.
        """
        if blob_id in self._recent:
            self._recent.move_to_end(blob_id)
            return self._recent[blob_id]
        path = self._path(blob_id)
        key = bytes.fromhex(blob_id)
        try:
            packed = self._packs.get(key)
            data = path.read_bytes() if packed is None else packed
        except OSError as error:
            raise DataError(
                f"blob {blob_id}: cannot be read from {path}: {error}; was the run "
                "directory copied without its blobs?"
            ) from error
        found = hashlib.sha256(data).hexdigest()
        if found != blob_id:
            path = self._packs.where(key) or path
            raise DataError(
                f"blob {blob_id}: {path} is damaged ({len(data)} bytes with hash "
                f"{found}); restore it from a copy or collect the trajectories anew"
            )
        self._remember(blob_id, data)
        return data

    def put(self, files: Mapping[str, bytes]) -> str:
        """Stores a workspace (path -> content) and returns its snapshot id.

        Raises:
          EnvUnavailableError: the disk is full or not writable.
        """
        manifest = {path: self.put_blob(data) for path, data in files.items()}
        return self.put_blob(json.dumps(manifest, sort_keys=True).encode())

    def get(self, snapshot: str) -> dict[str, bytes]:
        """Returns the workspace stored as `snapshot`, paths in sorted order.

        Raises:
          DataError: the snapshot or one of its files is missing or damaged.
        """
        manifest = self.manifest(snapshot)
        return {path: self.get_blob(blob_id) for path, blob_id in manifest.items()}

    def manifest(self, snapshot: str) -> dict[str, str]:
        """Returns path -> blob id of `snapshot`, without reading the files.

        Raises:
          DataError: the snapshot is missing, damaged, or a blob of another kind.
        """
        data = self.get_blob(snapshot)
        try:
            return from_json(dict[str, str], json.loads(data), "snapshot")
        except (ValueError, DataError) as error:
            raise DataError(f"blob {snapshot} is a file, not a snapshot") from error

    def _path(self, blob_id: str) -> Path:
        if not _BLOB_ID.fullmatch(blob_id):
            raise DataError(f"{blob_id!r:.80} is not a blob id (64 hex digits)")
        return self._blobs_dir / blob_id[:2] / blob_id[2:]

    def _remember(self, blob_id: str, data: bytes) -> None:
        if len(data) > self._memory_bytes // 4:
            return
        self._recent[blob_id] = data
        self._recent_bytes += len(data)
        while self._recent_bytes > self._memory_bytes:
            _, dropped = self._recent.popitem(last=False)
            self._recent_bytes -= len(dropped)


def write_atomically(path: Path, data: bytes, *, fsync: bool = False) -> None:
    """Writes `path` so that readers see all of `data` or the file before it.

    Args:
      path: file to create or replace; its folder is created.
      data: the content.
      fsync: wait until the disk has it.

    Raises:
      EnvUnavailableError: the disk is full or not writable.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=".partial-", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(data)
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if fsync:
            _fsync_dir(path.parent)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise EnvUnavailableError(
            f"cannot write {path}: {error}; free some space or choose another workdir"
        ) from error


def _fsync_dir(folder: Path) -> None:
    """Makes a rename inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
