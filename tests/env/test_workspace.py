"""What actions do to files, and how impossible ones are explained."""

import random
import time

import pytest

from mlagent_jax.env import workspace
from mlagent_jax.env.diffs import unified_diff
from mlagent_jax.env.looks import DataView
from mlagent_jax.env.workspace import apply_action, check_path, check_size
from mlagent_jax.errors import ActionError
from mlagent_jax.text.actions import parse_reply
from mlagent_jax.types import Action, ActionKind

FILES = {"train.py": b"a = 1\nb = 2\na = 1\nc = 3\n", "lib/x.py": b"", "m.bin": b"\xff"}


def act(reply, files=FILES, **kwargs):
    return apply_action(files, parse_reply(reply, max_chars=10**7), **kwargs)


def edited(*blocks, files=FILES, path="train.py"):
    action = Action(kind=ActionKind.EDIT, path=path, blocks=blocks)
    return apply_action(files, action).files[path].decode()


def refused(call, *args, **kwargs):
    with pytest.raises(ActionError) as caught:
        call(*args, **kwargs)
    return caught.value


def test_an_edit_replaces_whole_lines_and_nothing_else():
    before = dict(FILES)
    assert (
        edited(("b = 2\n", "b = 5\nd = 6\n")) == "a = 1\nb = 5\nd = 6\na = 1\nc = 3\n"
    )
    assert edited(("b = 2\na = 1\n", "")) == "a = 1\nc = 3\n"
    assert edited(("a = 1\nb = 2\n", "\n")) == "\na = 1\nc = 3\n"
    assert before == FILES


def test_blocks_are_applied_one_after_the_other():
    blocks = (("b = 2\n", "z = 9\n"), ("z = 9\n", "y = 8\n"))
    assert edited(*blocks) == "a = 1\ny = 8\na = 1\nc = 3\n"


def test_part_of_a_line_is_no_match():
    error = refused(edited, ("= 2\n", "= 3\n"))
    assert error.reason == "search_not_found"
    assert refused(edited, ("b = 2\nc = 3\n", "")).reason == "search_not_found"


def test_a_near_miss_is_pointed_at():
    error = refused(edited, ("  b = 2\n", "b = 3\n"))
    assert "Line 2 looks like its start" in str(error)


def test_a_search_text_must_occur_once_overlaps_included():
    assert refused(edited, ("a = 1\n", "a = 2\n")).reason == "search_not_unique"
    files = {"t": b"x\nx\nx\n"}
    error = refused(edited, ("x\nx\n", "y\n"), files=files, path="t")
    assert error.reason == "search_not_unique"


def test_the_last_line_may_lack_its_newline_and_crlf_counts_as_lf():
    assert edited(("x\n", "y\n"), files={"t": b"x"}, path="t") == "y\n"
    assert edited(("x\n", "y\n"), files={"t": b"x\r\nz\r\n"}, path="t") == "y\nz\n"


@pytest.mark.parametrize("search", ["", "\n", "  \n\n"])
def test_an_empty_search_text_is_refused(search):
    assert refused(edited, (search, "x\n")).reason == "empty_search"


def test_searching_takes_linear_time_on_hostile_repetitions():
    files = {"t": b"a\n" * 200_000}
    start_s = time.perf_counter()
    search = "a\n" * 100_000 + "b\n"
    assert refused(edited, (search, ""), files=files, path="t").reason == (
        "search_not_found"
    )
    assert time.perf_counter() - start_s < 2.0


def test_an_edit_agrees_with_a_line_by_line_search():
    rng = random.Random(0)
    for _ in range(400):
        lines = rng.choices("ab ", k=rng.randrange(1, 8))
        search = rng.choices("ab ", k=rng.randrange(1, 4))
        n = len(search)
        hits = [i for i in range(len(lines) - n + 1) if lines[i : i + n] == search]
        block = ("".join(f"{x}\n" for x in search), "new\n")
        files = {"t": "".join(f"{x}\n" for x in lines).encode()}
        if "".join(search).strip() and len(hits) == 1:
            expected = [*lines[: hits[0]], "new", *lines[hits[0] + n :]]
            assert edited(block, files=files, path="t").split("\n")[:-1] == expected
        else:
            refused(edited, block, files=files, path="t")


@pytest.mark.parametrize(
    ("first", "last", "content", "expected"),
    [
        (1, 1, "x\n", "x\nb = 2\na = 1\nc = 3\n"),
        (2, 4, "x\ny\n", "a = 1\nx\ny\n"),
        (4, 4, "", "a = 1\nb = 2\na = 1\n"),
        (1, 4, "", ""),
    ],
)
def test_a_line_range_is_replaced(first, last, content, expected):
    reply = f'<lines path="train.py" first="{first}" last="{last}">\n{content}</lines>'
    assert act(reply).files["train.py"].decode() == expected


@pytest.mark.parametrize(("first", "last"), [(0, 1), (3, 2), (5, 5), (1, 5)])
def test_a_range_outside_the_file_is_refused(first, last):
    reply = f'<lines path="train.py" first="{first}" last="{last}">\nx\n</lines>'
    error = refused(act, reply)
    assert error.reason == "bad_line_range"
    assert "lines 1 to 4" in str(error)


def test_a_file_is_written_whole():
    assert act('<write path="new/a.py">\nx\n</write>').files["new/a.py"] == b"x\n"
    assert act('<write path="m.bin">\n</write>').files["m.bin"] == b""


@pytest.mark.parametrize(
    ("reason", "reply"),
    [
        ("no_change", '<write path="lib/x.py">\n</write>'),
        ("no_change", '<lines path="train.py" first="1" last="1">\na = 1\n</lines>'),
        ("not_found", '<read path="nope.py"/>'),
        ("not_found", '<run path="nope.py"/>'),
        ("not_found", '<read path="data/train.csv"/>'),
        ("not_found", '<lines path="nope" first="1" last="1">\n</lines>'),
        ("not_text", '<read path="m.bin"/>'),
        ("not_text", '<lines path="m.bin" first="1" last="1">\n</lines>'),
        ("path_protected", '<write path="data/train.csv">\nx\n</write>'),
        ("path_protected", '<write path="data">\nx\n</write>'),
        ("path_protected", '<write path="submission.csv">\nx\n</write>'),
        ("path_outside", '<write path="../x">\nx\n</write>'),
        ("path_outside", '<run path="/bin/sh"/>'),
        ("path_outside", '<write path="train.py/x">\nx\n</write>'),
        ("path_outside", '<write path="lib">\nx\n</write>'),
    ],
)
def test_an_impossible_action_is_refused(reason, reply):
    assert refused(act, reply).reason == reason


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "a/..",
        ".",
        "./a",
        "a//b",
        "a/",
        "a/./b",
        "a\0b",
        "a\nb",
        "\ud800",
        "..\\x",
        "a\u202eb",
        "x" * 201,
        "é" * 150,
    ],
)
def test_paths_that_are_not_plain_are_outside(path):
    assert refused(check_path, path, for_write=False).reason == "path_outside"


def test_good_paths_pass():
    for path in [
        "train.py",
        "a/b/c.txt",
        "data2/x",
        "sub/submission.csv",
        "..a",
        "a b",
    ]:
        check_path(path, for_write=True)
    check_path("submission.csv", for_write=False)


def test_a_listing_has_line_numbers():
    text = act('<read path="train.py" first="2" last="3"/>').text
    assert text == "train.py, 4 lines:\n2| b = 2\n3| a = 1"
    assert act('<read path="lib/x.py"/>').text == "lib/x.py is empty."


def test_a_long_listing_keeps_head_and_tail():
    files = {"t": b"".join(b"%d\n" % i for i in range(1, 1001))}
    lines = act('<read path="t"/>', files).text.split("\n")
    assert len(lines) == 202
    assert lines[1] == "   1| 1"
    assert lines[-1] == "1000| 1000"
    assert "[800 lines left out; see them with first= and last=]" in lines
    wide = act('<read path="t"/>', {"t": b"x" * 5_000}).text
    assert wide.endswith("[+4760 characters]")


def test_data_can_be_looked_at_but_not_through():
    data = DataView({"train.csv": 6}, lambda name: {"train.csv": b"a,b\n1\n"}[name])
    assert "1| a,b" in act('<read path="data/train.csv"/>', data=data).text
    listing = act("<list/>", data=data).text
    assert "train.py (24 bytes)" in listing
    assert "data/train.csv (6 bytes, read-only)" in listing
    assert refused(act, '<read path="data/x"/>', data=data).reason == "not_found"


def test_a_listing_of_very_many_files_is_cut():
    files = {f"f{i:03}": b"" for i in range(150)}
    lines = act("<list/>", files).text.split("\n")
    assert len(lines) == 101
    assert lines[-1] == "[50 more files]"


def test_a_workspace_has_a_size(monkeypatch):
    monkeypatch.setattr(workspace, "_MAX_FILES", 4)
    monkeypatch.setattr(workspace, "_MAX_FILE_BYTES", 30)
    monkeypatch.setattr(workspace, "_MAX_WORKSPACE_BYTES", 50)
    act('<write path="n">\nx\n</write>')
    too_long = '<write path="n">\n' + "x" * 30 + "\n</write>"
    assert refused(act, too_long).reason == "workspace_too_large"
    assert "files" in str(refused(check_size, {str(i): b"" for i in range(5)}))
    assert "50" in str(refused(check_size, {"a": b"x" * 26, "b": b"x" * 26}))


def test_a_diff_shows_text_and_counts_bytes_of_the_rest():
    assert unified_diff(FILES, dict(FILES)) == ""
    after = {
        "train.py": b"a = 1\nb = 5\na = 1\nc = 3",
        "m.bin": b"\xff\xfe",
        "n": b"x\n",
    }
    assert unified_diff(FILES, after) == (
        "--- a/lib/x.py\n+++ /dev/null\n"
        "m.bin: 1 bytes -> 2 bytes\n"
        "--- /dev/null\n+++ b/n\n+x\n"
        "--- a/train.py\n+++ b/train.py\n@@ -1,4 +1,4 @@\n a = 1\n-b = 2\n+b = 5\n"
        " a = 1\n-c = 3\n+c = 3\n\\ No newline at end of file\n"
    )


def test_hostile_files_are_compared_in_bounded_time():
    rng = random.Random(0)
    before = "".join(f"{rng.randrange(150)}\n" for _ in range(2_900)).encode()
    after = "".join(f"{rng.randrange(150)}\n" for _ in range(2_900)).encode()
    start_s = time.perf_counter()
    unified_diff({"a": before}, {"a": after})
    assert time.perf_counter() - start_s < 5.0
