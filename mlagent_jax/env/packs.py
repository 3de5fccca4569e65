"""Many small records in few files: append-only packs that any process may read.

A state of a run costs two records of some hundred bytes each. As files of their own
they would fill whole blocks of the disk and crowd the folders of a network file
system. Here each writing process appends to a pack of its own, so nobody waits for a
lock, on no file system; readers find new records by reading on where they stopped.
Files are open for one record at a time: that is when network file systems pass on
what was written, and how many packs there are costs no descriptors.

A pack is a sequence of records: 32 bytes of key, 4 bytes of length (big-endian), the
data. A record that a dying process left unfinished is the last of its pack and is
passed over. Whether data are what their writer meant, the caller checks: all that is
kept here has a hash.
"""

import contextlib
import io
import os
import secrets
import struct
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

from mlagent_jax.errors import EnvUnavailableError

_HEAD = struct.Struct(">32sI")
_NO_KEY = bytes(32)  # a power cut can leave zeros where a record should be
_SUFFIX = ".pack"


class _Place(NamedTuple):
    pack: str
    offset: int
    length: int


class PackFolder:
    """Key -> data in the packs of a folder; the newest record of a key counts."""

    def __init__(self, folder: Path, *, fsync: bool = False) -> None:
        """Opens the packs in `folder`, which need not exist yet.

        Args:
          folder: holds the packs.
          fsync: wait for the disk after each write.
        """
        self._folder = folder
        self._fsync = fsync
        self._scanned: dict[str, int] = {}  # pack -> bytes known
        self._index: dict[bytes, _Place] = {}
        self._own: tuple[int, str] | None = None  # process, its pack

    def put(self, key: bytes, data: bytes) -> None:
        """Appends a record.

        Args:
          key: 32 bytes, not all zero.
          data: less than 4 GiB.

        Raises:
          EnvUnavailableError: the disk is full or not writable; nothing was stored.
        """
        assert len(key) == len(_NO_KEY)
        assert key != _NO_KEY
        record = _HEAD.pack(key, len(data)) + data
        path = self._folder / self._own_pack()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            start = _append(path, record, fsync=self._fsync)
        except OSError as error:
            self._own = None  # a stump would hide what came behind it
            raise EnvUnavailableError(
                f"cannot write {path}: {error}; free some space or choose another "
                "workdir"
            ) from error
        self._index[key] = _Place(path.name, start + _HEAD.size, len(data))

    def get(self, key: bytes) -> bytes | None:
        """Returns the data stored under `key`, None if there are none.

        Raises:
          EnvUnavailableError: a pack cannot be read.
        """
        place = self._find(key)
        if place is None:
            return None
        with self._open(place.pack) as file:
            return os.pread(file.fileno(), place.length, place.offset)

    def where(self, key: bytes) -> Path | None:
        """Returns the pack that holds `key`, None if none does.

        Raises:
          EnvUnavailableError: a pack cannot be read.
        """
        place = self._find(key)
        return None if place is None else self._folder / place.pack

    def _find(self, key: bytes) -> _Place | None:
        if key not in self._index:
            self._read_on()
        return self._index.get(key)

    def _own_pack(self) -> str:
        """Returns the name of this process's pack; a forked child gets another."""
        process = os.getpid()
        if self._own is None or self._own[0] != process:
            self._own = process, f"{secrets.token_hex(8)}{_SUFFIX}"
        return self._own[1]

    def _read_on(self) -> None:
        """Adds to the index what was appended since the last look."""
        try:
            with os.scandir(self._folder) as entries:
                found = [
                    (entry.stat(), entry.name)
                    for entry in entries
                    if entry.name.endswith(_SUFFIX)
                ]
        except (FileNotFoundError, NotADirectoryError):
            return
        for stat, pack in sorted(found, key=lambda item: item[0].st_mtime_ns):
            if stat.st_size > self._scanned.get(pack, 0):
                self._scan(pack, stat.st_size)

    def _scan(self, pack: str, size: int) -> None:
        place = self._scanned.get(pack, 0)
        with self._open(pack) as file:
            while place + _HEAD.size <= size:
                head = os.pread(file.fileno(), _HEAD.size, place)
                key, length = _HEAD.unpack(head)
                start = place + _HEAD.size
                if key == _NO_KEY or start + length > size:
                    break
                self._index[key] = _Place(pack, start, length)
                place = start + length
        self._scanned[pack] = place

    @contextlib.contextmanager
    def _open(self, pack: str) -> Generator[io.FileIO]:
        path = self._folder / pack
        try:
            with path.open("rb", buffering=0) as file:
                yield file
        except OSError as error:
            raise EnvUnavailableError(f"cannot read {path}: {error}") from error


def _append(path: Path, record: bytes, *, fsync: bool) -> int:
    """Writes a whole record or nothing; returns the offset where it begins.

    Raises:
      OSError: the disk is full or not writable.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    descriptor = os.open(path, flags, 0o644)
    try:
        start = os.fstat(descriptor).st_size
        written = 0
        try:
            while written < len(record):
                written += os.write(descriptor, record[written:])
        except OSError:
            os.ftruncate(descriptor, start)
            raise
        if fsync:
            os.fsync(descriptor)
        return start
    finally:
        os.close(descriptor)
