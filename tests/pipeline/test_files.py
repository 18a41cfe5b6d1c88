"""Files are the old or the new one, and reading one ends."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from configs.files import file_sha256
from pipeline.errors import PipelineError
from pipeline.files import read_bytes, read_json, replacing, temporary_files, write_json


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250 + ".json")  # the longest name that a file can have
    write_json(path, {"b": 1, "a": [2]})
    assert path.read_bytes() == b'{"a": [2], "b": 1}\n'
    with suppress(ZeroDivisionError), replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert read_json(path, "a test") == {"b": 1, "a": [2]}
    assert not temporary_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"x: not readable as a test \(No such file or directory\); look elsewhere"),
        (b"[1]", r"x: not readable as a test \(found a list, expected an object\); look elsewhere"),
        (b"{", "x: not readable as a test"),
        (b"\xff\xfe\x00", "x: not readable as a test"),
        (b"[" * 100_000, "x: not readable as a test"),
    ],
)
def test_what_is_no_json_object_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    with pytest.raises(PipelineError, match=message) as caught:
        read_json(tmp_path / "x", "a test", "look elsewhere")
    assert caught.value.remedy == "look elsewhere"
    assert "\n" not in str(caught.value)


def test_pipes_devices_and_large_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"12345")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(PipelineError, match=r"regular file|Is a directory"):
            read_bytes(path, "a test", limit=4)
    with pytest.raises(PipelineError, match="more than 4 bytes"):
        read_bytes(tmp_path / "large", "a test", limit=4)


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PipelineError, match="not a regular file"), replacing(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("name", ["a\0b", "a\ud800"])
def test_a_path_that_no_file_system_has_has_no_checksum(name: str) -> None:
    assert file_sha256(Path(name)) == ""
