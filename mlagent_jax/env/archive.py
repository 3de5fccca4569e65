"""Archives that a user supplies: unpacking them, finding files, remembering hashes.

Kaggle's downloads are zips of zips whose folders differ between competitions and
over time, so tasks ask for files by name and not by path. Nothing here downloads.
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mlagent_jax.errors import TaskError

_CHUNK_BYTES = 1 << 20
_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar")
_SUFFIXES = (".zip", ".7z", *_TAR_SUFFIXES)
_MAX_DEPTH = 3  # of archives within archives
# Programs that read 7z, with their arguments before archive and target.
_READERS_7Z = (("bsdtar", "-xf"), ("7zz", "x", "-y"), ("7z", "x", "-y"))


def unpack(archive: Path, target: Path) -> None:
    """Fills the new folder `target` with the files of `archive`.

    Inner archives are unpacked as well: `train.zip` into the folder `train` beside it,
    unless there is such a folder already.

    Args:
      archive: a zip, tar or 7z file, or a folder, which is not changed.
      target: must not exist.

    Raises:
      TaskError: there is no such file, or it cannot be read, or one of its paths
        leads out of the target folder.
    """
    if archive.is_dir():
        shutil.copytree(archive, target, copy_function=_link_or_copy)
    elif archive.is_file():
        _unpack_file(archive, target)
    else:
        raise TaskError(f"{archive}: no such file or folder")
    unpack_inner(target)


def unpack_inner(target: Path) -> None:
    """Replaces archives below a folder by folders with their files, see `unpack`.

    Raises:
      TaskError: one cannot be read, or holds a path that leads outside.
    """
    for _ in range(_MAX_DEPTH):
        for path in sorted(target.rglob("*")):
            if path.is_file() and path.name.endswith(_SUFFIXES):
                folder = path.with_name(_stem(path.name))
                if not folder.exists():
                    _unpack_file(path, folder)
                path.unlink()


def find_file(raw: Path, name: str) -> Path:
    """Returns the file called `name`, at any depth; the first of the shallowest ones.

    Raises:
      TaskError: there is none.
    """
    found = sorted(_files(raw, name), key=lambda p: (len(p.parts), p))
    if not found:
        have = sorted({p.name for p in raw.rglob("*") if p.is_file()})
        shown = ", ".join(have[:12]) + (", ..." if len(have) > 12 else "")
        raise TaskError(f"the archive has no file {name!r}; it has {shown or 'none'}")
    return found[0]


def find_files(raw: Path, folder: str, suffix: str) -> dict[str, Path]:
    """Returns name -> path of the files that lie directly in folders of one name.

    Args:
      raw: the unpacked archive.
      folder: name of the folder, e.g. "train".
      suffix: end of the file names, e.g. ".jpg".

    Raises:
      TaskError: there are none.
    """
    found = {
        path.name: path
        for path in _files(raw, f"*{suffix}")
        if path.parent.name == folder
    }
    if not found:
        raise TaskError(f"the archive has no files {folder}/*{suffix}")
    return dict(sorted(found.items()))


def archive_hashes(archive: Path) -> dict[str, str]:
    """Returns relative path -> sha256 of an archive file, or of a folder's files."""
    if archive.is_file():
        return {archive.name: hash_file(archive)}
    files = sorted(path for path in archive.rglob("*") if path.is_file())
    return {path.relative_to(archive).as_posix(): hash_file(path) for path in files}


def hash_file(path: Path) -> str:
    """Returns the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(raw: Path, pattern: str) -> list[Path]:
    # Archives made on a Mac hold a shadow of every file under __MACOSX.
    return [
        path
        for path in raw.rglob(pattern)
        if path.is_file() and "__MACOSX" not in path.parts
    ]


def _unpack_file(archive: Path, target: Path) -> None:
    try:
        if archive.name.endswith(".7z"):
            target.mkdir()
            _unpack_7z(archive, target)
        elif archive.name.endswith(_TAR_SUFFIXES):
            with tarfile.open(archive) as tar:
                tar.extractall(target, filter="data")
        else:
            with zipfile.ZipFile(archive) as zipped:
                _check_inside(archive, zipped.namelist(), target)
                zipped.extractall(target)
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise TaskError(f"{archive}: cannot be unpacked: {error}") from error


def _unpack_7z(archive: Path, target: Path) -> None:
    """Unpacks a 7z file with whatever program is there.

    Raises:
      TaskError: none is there, or it fails.
    """
    for program, *arguments in _READERS_7Z:
        path = shutil.which(program)
        if path is None:
            continue
        result = subprocess.run(
            [path, *arguments, str(archive.resolve())],
            cwd=target,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise TaskError(f"{archive}: {program}: {result.stderr.strip()[-300:]}")
        return
    programs = ", ".join(program for program, *_ in _READERS_7Z)
    raise TaskError(
        f"{archive}: reading 7z needs one of {programs}; install one (`apt install "
        "libarchive-tools`), or unpack the file yourself and give the folder"
    )


def _check_inside(archive: Path, names: Sequence[str], target: Path) -> None:
    root = target.resolve()
    for name in names:
        if not (root / name).resolve().is_relative_to(root):
            raise TaskError(f"{archive}: holds the path {name!r}, which leads outside")


def _stem(name: str) -> str:
    suffix = next(s for s in _SUFFIXES if name.endswith(s))
    return name.removesuffix(suffix)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # Another file system.
        shutil.copy2(source, target)
