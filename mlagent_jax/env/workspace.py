"""What an action does to the files of a workspace: pure functions on dictionaries.

A workspace is path -> bytes. It never holds `data/` (the public data, mounted
read-only) nor `submission.csv` (only an execution writes it). Nothing here touches
the disk or runs code. Text files are UTF-8; CRLF counts as LF when a file is shown
or edited, and an edited file is written with LF.
"""

import difflib
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from mlagent_jax.errors import ActionError
from mlagent_jax.text.actions import end_last_line
from mlagent_jax.types import Action, ActionKind

DATA_FOLDER = "data"
SUBMISSION_FILE = "submission.csv"

_MAX_PATH_CHARS = 200
_MAX_NAME_BYTES = 255
_MAX_FILES = 500
_MAX_FILE_BYTES = 64 << 20
_MAX_WORKSPACE_BYTES = 128 << 20
_MAX_LISTED_FILES = 100
_MAX_LISTED_LINES = 200
_NUM_TAIL_LINES = 40
_MAX_LINE_CHARS = 240
_MAX_DIFF_BYTES = 128 << 10
_MAX_DIFF_LINES = 3_000
_MAX_SHOWN_CHARS = 80


class WorkspaceChange(NamedTuple):
    """What an action made of a workspace.

    Attributes:
      files: the workspace after the action.
      text: what to show the agent, "" if there is nothing to show.
    """

    files: dict[str, bytes]
    text: str


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


def apply_action(
    files: Mapping[str, bytes], action: Action, *, data: DataView = NO_DATA
) -> WorkspaceChange:
    """Returns the workspace after `action`, and what the agent gets to see.

    `run` is checked only; `undo` and `submit` do not concern the files. For all three
    the workspace comes back as it was.

    Args:
      files: the workspace before.
      action: what to do.
      data: public data that `read` and `list` may show.

    Raises:
      ActionError: with reason `path_outside`, `path_protected`, `not_found`,
        `not_text`, `search_not_found`, `search_not_unique`, `empty_search`,
        `bad_line_range`, `no_change` or `workspace_too_large`.
    """
    match action.kind:
        case ActionKind.LIST:
            return WorkspaceChange(dict(files), _list_files(files, data))
        case ActionKind.READ:
            return WorkspaceChange(dict(files), _read_file(files, action, data))
        case ActionKind.RUN:
            path = _checked_path(action)
            _require_file(files, path)
            return WorkspaceChange(dict(files), "")
        case ActionKind.EDIT | ActionKind.LINES | ActionKind.WRITE:
            return WorkspaceChange(_edit(files, action), "")
        case ActionKind.UNDO | ActionKind.SUBMIT:
            return WorkspaceChange(dict(files), "")


def check_path(path: str, *, for_write: bool) -> None:
    """Raises if `path` is not a legal file of the workspace.

    Args:
      path: as the agent wrote it.
      for_write: True if the file is about to be changed.

    Raises:
      ActionError: `path_outside` if the path is absolute, climbs up, is not in its
        normal form, is too long or has control characters; `path_protected` if it
        may not be written.
    """
    shown = _shown(path)
    if not path or len(path) > _MAX_PATH_CHARS:
        raise ActionError(
            "path_outside",
            f"The path {shown} has {len(path)} characters; 1 to {_MAX_PATH_CHARS} are "
            "allowed.",
        )
    parts = path.split("/")
    is_outside = path.startswith("/") or ".." in parts or "\\" in path
    if is_outside or any(not c.isprintable() for c in path):
        raise ActionError(
            "path_outside",
            f"The path {shown} does not name a file inside the workspace. Write a "
            'relative path such as "train.py".',
        )
    normal = posixpath.normpath(path)
    if normal != path or path == ".":
        raise ActionError(
            "path_outside", f"Write the path {shown} in its plain form: {normal}"
        )
    if any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        raise ActionError("path_outside", f"The path {shown} has too long a name.")
    if not for_write:
        return
    if parts[0] == DATA_FOLDER:
        raise ActionError(
            "path_protected", f"{shown} cannot be changed: data/ is read-only."
        )
    if path == SUBMISSION_FILE:
        raise ActionError(
            "path_protected",
            f"{SUBMISSION_FILE} cannot be written by hand: a script has to make it.",
        )


def check_size(files: Mapping[str, bytes]) -> None:
    """Raises if `files` are more than a workspace may hold.

    Raises:
      ActionError: `workspace_too_large`, with the limit that is exceeded.
    """
    total = sum(len(content) for content in files.values())
    largest = max((len(content) for content in files.values()), default=0)
    for what, value, limit in [
        ("files", len(files), _MAX_FILES),
        ("bytes in one file", largest, _MAX_FILE_BYTES),
        ("bytes", total, _MAX_WORKSPACE_BYTES),
    ]:
        if value > limit:
            raise ActionError(
                "workspace_too_large",
                f"The workspace would hold {value} {what}; at most {limit} may be.",
            )


def unified_diff(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> str:
    """Returns the unified diff of two workspaces, "" if they are equal.

    Binary and large files are reported by their sizes.
    """
    paths = sorted(before.keys() | after.keys())
    parts = [
        part
        for path in paths
        if before.get(path) != after.get(path)
        for part in _diff_file(path, before.get(path), after.get(path))
    ]
    return "".join(f"{part}\n" for part in parts)


def _edit(files: Mapping[str, bytes], action: Action) -> dict[str, bytes]:
    path = _checked_path(action, for_write=True)
    if action.kind is ActionKind.WRITE:
        _check_folders(files, path)
        text = end_last_line(action.content)
    else:
        _require_file(files, path)
        old = _decode(path, files[path])
        if action.kind is ActionKind.EDIT:
            text = _replace_blocks(path, old, action.blocks)
        else:
            text = _replace_lines(path, old, action)
    content = text.encode()
    if files.get(path) == content:
        raise ActionError(
            "no_change", f"{_shown(path)} is the same after this action as before."
        )
    changed = {**files, path: content}
    check_size(changed)
    return changed


def _replace_blocks(path: str, text: str, blocks: Sequence[tuple[str, str]]) -> str:
    """Returns `text` after the (search, replace) blocks, one after the other.

    Raises:
      ActionError: a search text is empty or does not occur exactly once.
    """
    # With a newline before every line, whole lines are a plain substring search.
    text = "\n" + end_last_line(text)
    for number, (search, replace) in enumerate(blocks, 1):
        which = (
            f"The search text of block {number}"
            if len(blocks) > 1
            else ("The search text")
        )
        if not search.strip():
            raise ActionError("empty_search", f"{which} is empty.")
        needle = "\n" + end_last_line(search)
        start = text.find(needle)
        if start < 0:
            hint = _nearest_line(text, search)
            raise ActionError(
                "search_not_found", f"{which} is not in {_shown(path)}. {hint}"
            )
        if text.find(needle, start + 1) >= 0:
            raise ActionError(
                "search_not_unique",
                f"{which} occurs more than once in {_shown(path)}. Add lines before or "
                "after it.",
            )
        # The newline at the end of the match also starts the line after it.
        text = (
            text[:start] + "\n" + end_last_line(replace) + text[start + len(needle) :]
        )
    return text[1:]


def _nearest_line(text: str, search: str) -> str:
    """Returns a hint at the line of `text` that looks like the start of `search`."""
    first = next(line.strip() for line in search.split("\n") if line.strip())
    for number, line in enumerate(text[1:].split("\n"), 1):
        if line.strip() == first:
            return (
                f"Line {number} looks like its start, but white space or a later line "
                "differs. Copy whole lines exactly."
            )
    return "Copy whole lines exactly as they stand in the file."


def _replace_lines(path: str, text: str, action: Action) -> str:
    lines = _lines_of(text)
    first, last = _checked_range(path, len(lines), action)
    lines[first - 1 : last] = _lines_of(action.content)
    return "".join(f"{line}\n" for line in lines)


def _checked_range(path: str, num_lines: int, action: Action) -> tuple[int, int]:
    """Returns the inclusive line range of `action`; missing ends mean the file's.

    Raises:
      ActionError: the range is empty or leaves the file.
    """
    first = 1 if action.first_line is None else action.first_line
    last = num_lines if action.last_line is None else action.last_line
    if not 1 <= first <= last <= num_lines:
        raise ActionError(
            "bad_line_range",
            f"{_shown(path)} has lines 1 to {num_lines}; {first} to {last} is no range "
            "of them.",
        )
    return first, last


def _read_file(files: Mapping[str, bytes], action: Action, data: DataView) -> str:
    path = _checked_path(action)
    name = path.removeprefix(f"{DATA_FOLDER}/")
    if name != path and name in data.sizes:
        lines = _lines_of(_decode(path, data.read(name)))
    else:
        _require_file(files, path)
        lines = _lines_of(_decode(path, files[path]))
    if not lines:
        return f"{_shown(path)} is empty."
    first, last = _checked_range(path, len(lines), action)
    width = len(str(last))
    numbered = [
        f"{number:>{width}}| {_cut(line)}"
        for number, line in enumerate(lines[first - 1 : last], first)
    ]
    num_hidden = len(numbered) - _MAX_LISTED_LINES
    if num_hidden > 0:
        head = numbered[: _MAX_LISTED_LINES - _NUM_TAIL_LINES]
        note = f"[{num_hidden} lines left out; see them with first= and last=]"
        numbered = [*head, note, *numbered[-_NUM_TAIL_LINES:]]
    return "\n".join([f"{_shown(path)}, {len(lines)} lines:", *numbered])


def _list_files(files: Mapping[str, bytes], data: DataView) -> str:
    entries = [
        f"{_shown(path)} ({len(content)} bytes)"
        for path, content in sorted(files.items())
    ]
    entries += [
        f"{DATA_FOLDER}/{_shown(path)} ({size} bytes, read-only)"
        for path, size in sorted(data.sizes.items())
    ]
    num_hidden = len(entries) - _MAX_LISTED_FILES
    if num_hidden > 0:
        entries = [*entries[:_MAX_LISTED_FILES], f"[{num_hidden} more files]"]
    return "\n".join(entries) if entries else "The workspace is empty."


def _checked_path(action: Action, *, for_write: bool = False) -> str:
    assert action.path is not None, f"{action.kind} without a path"
    check_path(action.path, for_write=for_write)
    return action.path


def _require_file(files: Mapping[str, bytes], path: str) -> None:
    if path not in files:
        raise ActionError(
            "not_found",
            f"There is no file {_shown(path)} in the workspace. <list/> shows all.",
        )


def _check_folders(files: Mapping[str, bytes], path: str) -> None:
    """Checks that `path` needs no folder where a file is, nor the other way round.

    Raises:
      ActionError: it does.
    """
    parts = path.split("/")
    for end in range(1, len(parts)):
        folder = "/".join(parts[:end])
        if folder in files:
            raise ActionError(
                "path_outside", f"{_shown(folder)} is a file, not a folder."
            )
    if any(other.startswith(f"{path}/") for other in files):
        raise ActionError("path_outside", f"{_shown(path)} is a folder, not a file.")


def _decode(path: str, content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ActionError(
            "not_text", f"{_shown(path)} is not a text file ({len(content)} bytes)."
        )
    return text.replace("\r\n", "\n")


def _lines_of(text: str) -> list[str]:
    """Returns the lines of `text`; a newline ends a line and starts none."""
    return end_last_line(text).split("\n")[:-1]


def _diff_file(path: str, before: bytes | None, after: bytes | None) -> Iterator[str]:
    texts = [_diffable(before), _diffable(after)]
    if texts[0] is None or texts[1] is None:
        yield f"{path}: {_size(before)} -> {_size(after)}"
        return
    if before is None or after is None:
        yield "--- /dev/null" if before is None else f"--- a/{path}"
        yield f"+++ b/{path}" if before is None else "+++ /dev/null"
        lines = texts[1] if before is None else texts[0]
        mark = "+" if before is None else "-"
        yield from (f"{mark}{line}" for line in lines)
        return
    yield from difflib.unified_diff(
        texts[0], texts[1], f"a/{path}", f"b/{path}", lineterm="", n=3
    )


def _diffable(content: bytes | None) -> list[str] | None:
    """Returns the lines to compare, None if the file is binary or too large."""
    if content is None:
        return []
    if len(content) > _MAX_DIFF_BYTES or content.count(b"\n") > _MAX_DIFF_LINES:
        return None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    lines = text.split("\n")
    if lines[-1]:
        lines[-1] += "\n\\ No newline at end of file"
    else:
        lines.pop()
    return lines


def _size(content: bytes | None) -> str:
    return "no file" if content is None else f"{len(content)} bytes"


def _cut(line: str) -> str:
    hidden = len(line) - _MAX_LINE_CHARS
    return line if hidden <= 0 else f"{line[:_MAX_LINE_CHARS]} [+{hidden} characters]"


def _shown(text: str) -> str:
    """Returns `text` as one short printable piece of a message."""
    head = "".join(c if c.isprintable() else "?" for c in text[:_MAX_SHOWN_CHARS])
    return head if len(text) <= _MAX_SHOWN_CHARS else f"{head}..."
