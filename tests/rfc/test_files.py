"""Files of strangers: regular files alone, within bounds, and JSON that breaks nothing later."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfc.files import MOST_DEPTH, FileError, open_regular, parse_json, read_bytes, read_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON)
@settings(max_examples=100)
def test_what_is_json_within_the_bounds_is_read_as_python_reads_it(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"1" * 400, "an integer of 400 digits"),
        (b"-" + b"1" * 5000, "an integer of 5000 digits"),
        (b"9223372036854775808", "64 bits do not hold"),
        (b"1e400", "the number 1e400 is too large"),
        (b"-1e400", "too large"),
        (b"NaN", "NaN is no number of JSON"),
        (b"-Infinity", "-Infinity is no number of JSON"),
        (b"[" * 100_000, "nested deeper"),
        (b"[" * (MOST_DEPTH + 1) + b"]" * (MOST_DEPTH + 1), f"nested deeper than {MOST_DEPTH}"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' occurs twice in one object"),
        (b'["\\ud800"]', "no valid Unicode"),
        (b'{"\\udfff": 1}', "no valid Unicode"),
        (b"\xff\xfe", "no JSON"),
        (b"\xef\xbb\xbf{}", "no JSON"),
        (b"", "no JSON"),
        (b"{", "no JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_would_break_something_later_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(FileError, match=said):
        parse_json(content)


def test_numbers_that_python_writes_and_json_does_not_have_are_read_where_they_may_be() -> None:
    assert parse_json(b"[-Infinity, Infinity]", finite=False) == [float("-inf"), float("inf")]
    assert parse_json(b"[" * MOST_DEPTH + b"]" * MOST_DEPTH)


def test_regular_files_alone_are_opened_and_none_beyond_its_bound(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"[1]")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert read_json(tmp_path / "link") == [1]
    assert read_bytes(tmp_path / "file", 3) == b"[1]"
    for path, said in (
        (tmp_path / "pipe", "is no regular file"),
        (tmp_path, "is no regular file"),
        (Path("/dev/zero"), "is no regular file"),
        (tmp_path / "none", "is missing"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long"),
        (tmp_path / "a\0b", "cannot be read"),
    ):
        with pytest.raises(FileError, match=said):
            open_regular(path)
    with pytest.raises(FileError, match="is a link"):
        open_regular(tmp_path / "link", follow=False)
    with pytest.raises(FileError, match="has 3 bytes, at most 2 are expected"):
        read_bytes(tmp_path / "file", 2)
