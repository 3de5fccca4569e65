"""What changed between two workspaces, as a unified diff."""

import difflib
from collections.abc import Iterator, Mapping

_MAX_DIFF_BYTES = 128 << 10
_MAX_DIFF_LINES = 3_000


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
