"""What an action does to the files of a workspace: pure functions on dictionaries.

A workspace is path -> bytes. It never holds `data/` (the public data, mounted
read-only) nor `submission.csv` (only an execution writes it). Nothing here touches
the disk or runs code. Text files are UTF-8; CRLF counts as LF when a file is shown
or edited, and an edited file is written with LF.
"""

import posixpath
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mlagent_jax.env import looks
from mlagent_jax.env.looks import (
    DATA_FOLDER,
    NO_DATA,
    DataView,
    checked_range,
    decode_text,
    lines_of,
    shown,
)
from mlagent_jax.errors import ActionError
from mlagent_jax.text.actions import end_last_line
from mlagent_jax.types import Action, ActionKind

SUBMISSION_FILE = "submission.csv"

_MAX_PATH_CHARS = 200
_MAX_NAME_BYTES = 255
_MAX_FILES = 500
_MAX_FILE_BYTES = 64 << 20
_MAX_WORKSPACE_BYTES = 128 << 20
_MAX_COPIED_DATA_BYTES = 1 << 20
_DEFAULT_LIST_HINT = "<list/> shows all."


class WorkspaceChange(NamedTuple):
    """What an action made of a workspace.

    Attributes:
      files: the workspace after the action.
      text: what to show the agent, "" if there is nothing to show.
    """

    files: dict[str, bytes]
    text: str


def apply_action(
    files: Mapping[str, bytes],
    action: Action,
    *,
    data: DataView = NO_DATA,
    list_hint: str = _DEFAULT_LIST_HINT,
) -> WorkspaceChange:
    """Returns the workspace after `action`, and what the agent gets to see.

    `run` is checked only; `undo` and `submit` do not concern the files here, and an
    `ask_edit` becomes a `write` once the editor has answered. For all of them the
    workspace comes back as it was.

    Args:
      files: the workspace before.
      action: what to do.
      data: public data that actions may look at.
      list_hint: says to an agent that misses a file how to see what there is.

    Raises:
      ActionError: with reason `path_outside`, `path_protected`, `not_found`,
        `not_text`, `search_not_found`, `search_not_unique`, `empty_search`,
        `bad_line_range`, `no_change` or `workspace_too_large`.
    """
    match action.kind:
        case ActionKind.LIST:
            return WorkspaceChange(dict(files), _list(files, action, data))
        case ActionKind.READ | ActionKind.INSPECT | ActionKind.UNDERSTAND:
            text = _look(files, action, data, list_hint)
            return WorkspaceChange(dict(files), text)
        case ActionKind.RUN:
            require_file(files, _checked_path(action), list_hint)
            return WorkspaceChange(dict(files), "")
        case ActionKind.COPY:
            return WorkspaceChange(_copy(files, action, data, list_hint), "")
        case ActionKind.EDIT | ActionKind.LINES | ActionKind.WRITE:
            return WorkspaceChange(_edit(files, action, list_hint), "")
        case ActionKind.UNDO | ActionKind.SUBMIT | ActionKind.ASK_EDIT:
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
    named = shown(path)
    if not path or len(path) > _MAX_PATH_CHARS:
        raise ActionError(
            "path_outside",
            f"The path {named} has {len(path)} characters; 1 to {_MAX_PATH_CHARS} are "
            "allowed.",
        )
    parts = path.split("/")
    is_outside = path.startswith("/") or ".." in parts or "\\" in path
    if is_outside or any(not c.isprintable() for c in path):
        raise ActionError(
            "path_outside",
            f"The path {named} does not name a file inside the workspace. Write a "
            'relative path such as "train.py".',
        )
    normal = posixpath.normpath(path)
    if normal != path or path == ".":
        raise ActionError(
            "path_outside", f"Write the path {named} in its plain form: {normal}"
        )
    if any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        raise ActionError("path_outside", f"The path {named} has too long a name.")
    if not for_write:
        return
    if parts[0] == DATA_FOLDER:
        raise ActionError(
            "path_protected", f"{named} cannot be changed: data/ is read-only."
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


def require_file(files: Mapping[str, bytes], path: str, list_hint: str) -> None:
    """Raises if the workspace has no file `path`.

    Raises:
      ActionError: `not_found`.
    """
    if path not in files:
        raise ActionError(
            "not_found",
            f"There is no file {shown(path)} in the workspace. {list_hint}",
        )


def _list(files: Mapping[str, bytes], action: Action, data: DataView) -> str:
    if action.path is None:
        return looks.list_files(files, data)
    folder = action.path.removesuffix("/") or "/"
    if folder != ".":
        check_path(folder, for_write=False)
    return looks.list_folder(files, data, folder)


def _look(
    files: Mapping[str, bytes], action: Action, data: DataView, list_hint: str
) -> str:
    path = _checked_path(action)
    name = path.removeprefix(f"{DATA_FOLDER}/")
    if name != path and name in data.sizes:
        text = decode_text(path, data.read(name))
    else:
        require_file(files, path, list_hint)
        text = decode_text(path, files[path])
    if action.kind is ActionKind.READ:
        return looks.number_lines(text, path, action)
    if action.kind is ActionKind.INSPECT:
        return looks.inspect_lines(text, path, action)
    return looks.fit_observation(text) or f"{shown(path)} is empty."


def _copy(
    files: Mapping[str, bytes], action: Action, data: DataView, list_hint: str
) -> dict[str, bytes]:
    path, target = _checked_path(action), action.target
    assert target is not None
    check_path(target, for_write=True)
    _check_folders(files, target)
    name = path.removeprefix(f"{DATA_FOLDER}/")
    if name != path and name in data.sizes:
        if data.sizes[name] >= _MAX_COPIED_DATA_BYTES:
            raise ActionError(
                "workspace_too_large",
                f"{shown(path)} has {data.sizes[name]} bytes, too many for a copy; "
                "scripts can read it where it is.",
            )
        content = data.read(name)
    else:
        require_file(files, path, list_hint)
        content = files[path]
    return _changed(files, target, content)


def _edit(
    files: Mapping[str, bytes], action: Action, list_hint: str
) -> dict[str, bytes]:
    path = _checked_path(action, for_write=True)
    if action.kind is ActionKind.WRITE:
        _check_folders(files, path)
        text = end_last_line(action.content)
    else:
        require_file(files, path, list_hint)
        old = decode_text(path, files[path])
        if action.kind is ActionKind.EDIT:
            text = _replace_blocks(path, old, action.blocks)
        else:
            text = _replace_lines(path, old, action)
    return _changed(files, path, text.encode())


def _changed(files: Mapping[str, bytes], path: str, content: bytes) -> dict[str, bytes]:
    """Returns the workspace with `content` in `path`.

    Raises:
      ActionError: `no_change` or `workspace_too_large`.
    """
    if files.get(path) == content:
        raise ActionError(
            "no_change", f"{shown(path)} is the same after this action as before."
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
                "search_not_found", f"{which} is not in {shown(path)}. {hint}"
            )
        if text.find(needle, start + 1) >= 0:
            raise ActionError(
                "search_not_unique",
                f"{which} occurs more than once in {shown(path)}. Add lines before or "
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
    lines = lines_of(text)
    first, last = checked_range(path, len(lines), action)
    lines[first - 1 : last] = lines_of(action.content)
    return "".join(f"{line}\n" for line in lines)


def _checked_path(action: Action, *, for_write: bool = False) -> str:
    assert action.path is not None, f"{action.kind} without a path"
    check_path(action.path, for_write=for_write)
    return action.path


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
                "path_outside", f"{shown(folder)} is a file, not a folder."
            )
    if any(other.startswith(f"{path}/") for other in files):
        raise ActionError("path_outside", f"{shown(path)} is a folder, not a file.")
