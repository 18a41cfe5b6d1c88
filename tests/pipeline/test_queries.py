"""What is asked: words that no run knows, and sentences from a file."""

import csv
import json
from pathlib import Path

import pytest

from tests.world import PHOTO, scan


def test_unknown_words_are_named(inside: Path) -> None:
    said = scan("retrieve", "--query", "a dgo by a tree", "--query", "a dog", "--top", "2")
    assert said.exit_code == 0, said.output
    assert said.stdout.count("note: unknown to the run and left out of the meaning: 'dgo'") == 1
    said = scan("retrieve", "--query", "a hous", "--json", "--top", "1")
    assert json.loads(said.stdout)[0]["unknown"] == [["hous", "house"]]
    for query, message in {"asdfgh qwerty zxcv": "knows none of these words", "!!!": "no word in it"}.items():
        for command in (["retrieve", "--query", query], ["explain", "--image", PHOTO.format(3), "--caption", query]):
            said = scan(*command)
            assert said.exit_code == 2
            assert message in said.stderr


def test_queries_from_a_file(inside: Path) -> None:
    Path("queries.txt").write_bytes(b"\xef\xbb\xbfa dog\r\n\r\na tree\r\n3 dogs, 1 tree\r\n")
    said = scan("retrieve", "--queries", "queries.txt", "--json", "--top", "1")
    assert [answer["query"] for answer in json.loads(said.stdout)] == ["a dog", "a tree", "3 dogs, 1 tree"]
    assert json.loads(said.stdout)[0]["unknown"] == []  # no mark at the beginning
    Path("joined.txt").write_text("\ufeffa dog\u2028by a tree\n\ufeffa tree\n", encoding="utf-8")
    said = scan("retrieve", "--queries", "joined.txt", "--json", "--top", "1")
    assert [answer["query"] for answer in json.loads(said.stdout)] == ["a dog\u2028by a tree", "a tree"]
    said = scan("retrieve", "--queries", "/dev/urandom")
    assert said.exit_code == 2
    assert "/dev/urandom: not a regular file, expected a text file" in said.stderr


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8"])
def test_queries_in_another_encoding(encoding: str, inside: Path) -> None:
    mark = "" if encoding == "utf-16" else "\ufeff"
    Path("queries.txt").write_bytes(f"{mark}a dog, a tree\r\na caf\u00e9\r\n".encode(encoding))
    said = scan("retrieve", "--queries", "queries.txt", "--json", "--top", "1", "--query", "a tree")
    assert [answer["query"] for answer in json.loads(said.stdout)] == ["a tree", "a dog, a tree", "a caf\u00e9"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.csv", "a dog\na tree\n"),
        ("q.txt", "IMG 1.heic;A dog, running\n"),
        ("q.TSV", "a dog"),
        ("q.json", '"a dog"'),
        ("q.txt", '\n["a dog", "a tree"]'),
        ("q.txt", '{"query": "a dog"}'),
        ("q.txt", "image,caption\n1.jpg,a dog\n"),
        ("q.txt", "image;split\n1.jpg;train\n"),
        ("q.txt", "1.jpg,a dog\n"),
        ("q.txt", "a dog\n1.jpg#0\ta dog\n"),
        ("q.txt", "1,a dog\n\n2,a tree\n"),
        ("q.txt", "id,query\n1,a dog\n2,a tree\n"),
        ("q.txt", "- a dog\n- a tree"),
        ("q.txt", "1. a dog"),
    ],
)
def test_queries_that_are_no_sentences_are_refused(name: str, text: str, inside: Path) -> None:
    Path(name).write_text(text)
    said = scan("retrieve", "--queries", name)
    expected = "a table, a list or JSON, expected a text file, one sentence a line; write the sentences alone to a .txt"
    line = ", line 2" if name == "q.txt" and text.startswith("a dog\n") else ", line 1" if "\t" in text else ""
    assert (said.exit_code, said.stderr) == (2, f"error: --queries {name}{line}: {expected}\n")


def test_a_query_of_any_length_is_no_traceback(inside: Path) -> None:
    csv.field_size_limit(131_072)  # as in a fresh process
    Path("long.txt").write_text("dog " * 50_000)
    said = scan("retrieve", "--queries", "long.txt")
    assert (said.exit_code, said.stdout) == (2, "")
    assert "199,999 characters; expected at most 10,000" in said.stderr


@pytest.mark.parametrize("content", ["a dog".encode("utf-16-le"), "a dog".encode("utf-32"), b"\xff\xfea", b"caf\xe9"])
def test_queries_in_no_known_encoding_are_refused(content: bytes, inside: Path) -> None:
    Path("queries.txt").write_bytes(content)
    said = scan("retrieve", "--queries", "queries.txt")
    assert said.exit_code == 2
    assert said.stderr.startswith("error: --queries queries.txt: not readable as a text file, one sentence a line (")
    assert said.stderr.endswith("write it as UTF-8\n")
