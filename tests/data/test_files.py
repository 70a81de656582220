import pytest

from opd_trl.data.files import DataError, atomically, check_free, read_jsonl, write_jsonl
from opd_trl.data.sources import read_file


def test_what_is_written_is_read_again_letters_outside_ascii_included(tmp_path):
    rows = [{"prompt": "Wie groß ist π?"}, {"prompt": "\u2028 separates lines elsewhere"}]
    write_jsonl(tmp_path / "folder" / "rows.jsonl", rows)
    assert list(read_jsonl(tmp_path / "folder" / "rows.jsonl")) == rows
    assert "groß" in (tmp_path / "folder" / "rows.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": "caf\xe9"}\n', r"line 2 is not UTF-8 \(byte 0xe9 at column 11\).*iconv"),
        (b'{"a": 1}\n\n{"a": \n', r"line 3 is not JSON"),
        (b"[1, 2]\n", r"line 1 holds a list, expected one object per line"),
    ],
)
def test_a_broken_line_is_named(tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_jsonl(tmp_path / "rows.jsonl"))


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == [{"a": 1}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "does not exist"),
        ("rows.txt", b"text", "expected one of .jsonl"),
        ("rows.jsonl", b"", "is empty"),
        ("rows.parquet", b"text", "cannot be read as parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_file(tmp_path / name)
    assert name in str(error.value)


def test_a_file_that_is_there_is_not_overwritten_unless_allowed(tmp_path):
    (tmp_path / "rows.jsonl").write_text("mine")
    with pytest.raises(DataError, match=r"rows.jsonl exists.*--overwrite"):
        check_free(tmp_path / "rows.jsonl", overwrite=False)
    check_free(tmp_path / "rows.jsonl", tmp_path / "none", overwrite=True)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("old")

    def fail():
        with atomically(path) as file:
            file.write("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
