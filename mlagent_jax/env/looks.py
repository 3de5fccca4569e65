"""What actions that only look show of a workspace: listings and lines of files.

Also the small checks of files and lines that looking and editing share. Text files
are UTF-8, and CRLF counts as LF.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from mlagent_jax.errors import ActionError
from mlagent_jax.text.actions import end_last_line
from mlagent_jax.text.mlab_actions import MAX_INSPECTED_LINES, MAX_OBSERVATION_CHARS
from mlagent_jax.types import Action, Task

DATA_FOLDER = "data"

_MAX_READ_BYTES = 1 << 20
_MAX_LISTED_FILES = 100
_MAX_LISTED_LINES = 200
_NUM_TAIL_LINES = 40
_MAX_LINE_CHARS = 240
_MAX_SHOWN_CHARS = 80


class DataView(NamedTuple):
    """The task's public data as an agent may look at it.

    Attributes:
      sizes: path below `data/` -> bytes.
      read: returns the content of a file in `sizes`, or the head of a big one.
    """

    sizes: Mapping[str, int]
    read: Callable[[str], bytes]


def _read_nothing(path: str) -> bytes:
    raise KeyError(path)


NO_DATA = DataView({}, _read_nothing)


def task_view(task: Task) -> DataView:
    """Returns the public data of a prepared task; of a big file its first lines."""
    names = [
        key.removeprefix("public/")
        for key in task.file_hashes
        if key.startswith("public/")
    ]

    def read(name: str) -> bytes:
        with (task.public_dir / name).open("rb") as file:
            head = file.read(_MAX_READ_BYTES)
        # Whole lines only, so that no character is cut in two.
        is_cut = len(head) == _MAX_READ_BYTES
        return head[: head.rfind(b"\n") + 1] if is_cut else head

    return DataView({n: (task.public_dir / n).stat().st_size for n in names}, read)


def list_files(files: Mapping[str, bytes], data: DataView) -> str:
    """Returns one line for every file of the workspace and of the data."""
    entries = [
        f"{shown(path)} ({len(content)} bytes)"
        for path, content in sorted(files.items())
    ]
    entries += [
        f"{DATA_FOLDER}/{shown(path)} ({size} bytes, read-only)"
        for path, size in sorted(data.sizes.items())
    ]
    return _joined(entries) if entries else "The workspace is empty."


def list_folder(files: Mapping[str, bytes], data: DataView, folder: str) -> str:
    """Returns the names in one folder, those of folders with a slash at the end.

    Args:
      files: the workspace.
      data: the public data.
      folder: "." or a path in plain form.

    Raises:
      ActionError: `not_found`: there is no such folder.
    """
    prefix = "" if folder == "." else f"{folder}/"
    paths = [*files, *(f"{DATA_FOLDER}/{name}" for name in data.sizes)]
    below = [path[len(prefix) :] for path in paths if path.startswith(prefix)]
    if not below and prefix:
        raise ActionError("not_found", f"There is no folder {shown(folder)}.")
    names = {f"{head}/" if rest else head for head, _, rest in _split(below)}
    return _joined([shown(name) for name in sorted(names)])


def number_lines(text: str, path: str, action: Action) -> str:
    """Returns the lines that a `read` asks for, with their numbers.

    Raises:
      ActionError: `bad_line_range`.
    """
    lines = lines_of(text)
    if not lines:
        return f"{shown(path)} is empty."
    first, last = checked_range(path, len(lines), action)
    width = len(str(last))
    numbered = [
        f"{number:>{width}}| {_cut_line(line)}"
        for number, line in enumerate(lines[first - 1 : last], first)
    ]
    num_hidden = len(numbered) - _MAX_LISTED_LINES
    if num_hidden > 0:
        head = numbered[: _MAX_LISTED_LINES - _NUM_TAIL_LINES]
        note = f"[{num_hidden} lines left out; see them with first= and last=]"
        numbered = [*head, note, *numbered[-_NUM_TAIL_LINES:]]
    return "\n".join([f"{shown(path)}, {len(lines)} lines:", *numbered])


def inspect_lines(text: str, path: str, action: Action) -> str:
    """Returns the lines that an `inspect` asks for, as they are.

    As in MLAgentBench, a range may leave the file at its end, and is short.

    Raises:
      ActionError: `bad_line_range`.
    """
    lines = lines_of(text)
    first, last = action.first_line, action.last_line
    assert first is not None
    assert last is not None
    if not 1 <= first <= min(last, len(lines)) or last - first >= MAX_INSPECTED_LINES:
        raise ActionError(
            "bad_line_range",
            f"{first} to {last} is no range of 1 to {MAX_INSPECTED_LINES} lines; "
            f"{shown(path)} has {len(lines)}.",
        )
    chosen = "\n".join(_cut_line(line) for line in lines[first - 1 : last])
    return (
        f"{shown(path)}, lines {first} to {min(last, len(lines))} of {len(lines)}:\n"
        f"{fit_observation(chosen)}"
    )


def fit_observation(text: str) -> str:
    """Returns `text` with its middle left out if it is longer than an observation."""
    if len(text) <= MAX_OBSERVATION_CHARS:
        return text
    half = MAX_OBSERVATION_CHARS // 2
    head, tail = text[:half], text[-half:]
    # Whole lines, where there are any.
    head, tail = head.rpartition("\n")[0] or head, tail.partition("\n")[2] or tail
    hidden = len(text) - len(head) - len(tail)
    return f"{head}\n[{hidden} characters left out]\n{tail}"


def checked_range(path: str, num_lines: int, action: Action) -> tuple[int, int]:
    """Returns the inclusive line range of `action`; missing ends mean the file's.

    Raises:
      ActionError: the range is empty or leaves the file.
    """
    first = 1 if action.first_line is None else action.first_line
    last = num_lines if action.last_line is None else action.last_line
    if not 1 <= first <= last <= num_lines:
        raise ActionError(
            "bad_line_range",
            f"{shown(path)} has lines 1 to {num_lines}; {first} to {last} is no range "
            "of them.",
        )
    return first, last


def decode_text(path: str, content: bytes) -> str:
    """Returns a file as text.

    Raises:
      ActionError: `not_text`.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ActionError(
            "not_text", f"{shown(path)} is not a text file ({len(content)} bytes)."
        )
    return text.replace("\r\n", "\n")


def lines_of(text: str) -> list[str]:
    """Returns the lines of `text`; a newline ends a line and starts none."""
    return end_last_line(text).split("\n")[:-1]


def shown(text: str) -> str:
    """Returns `text` as one short printable piece of a message."""
    head = "".join(c if c.isprintable() else "?" for c in text[:_MAX_SHOWN_CHARS])
    return head if len(text) <= _MAX_SHOWN_CHARS else f"{head}..."


def _split(paths: list[str]) -> list[tuple[str, str, str]]:
    return [path.partition("/") for path in paths]


def _joined(entries: list[str]) -> str:
    num_hidden = len(entries) - _MAX_LISTED_FILES
    if num_hidden > 0:
        entries = [*entries[:_MAX_LISTED_FILES], f"[{num_hidden} more files]"]
    return "\n".join(entries)


def _cut_line(line: str) -> str:
    hidden = len(line) - _MAX_LINE_CHARS
    return line if hidden <= 0 else f"{line[:_MAX_LINE_CHARS]} [+{hidden} characters]"
