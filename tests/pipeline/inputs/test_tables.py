"""Tables of images and captions are read as people have them, and refused where they can be read in two ways."""

import re
from pathlib import Path

import pytest

from pipeline.errors import PipelineError
from pipeline.inputs.captions import read_captions
from tests.pipeline.inputs.test_captions import write


def test_a_first_line_that_is_a_header_by_its_first_column_alone_is_said(tmp_path: Path) -> None:
    """It may be of a photo that is called image."""
    notes: list[str] = []
    path = write(tmp_path / "c.csv", "image,a dog\nb.jpg,a cat\n")
    assert [caption.text for caption in read_captions(path, notes)] == ["a cat"]
    assert notes == [f"{path}: skipped 1 line, taken for a header: ['image', 'a dog']"]


def test_every_numbered_column_of_captions_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "image_id,file_name,caption,caption_2,caption_number\n17,a.jpg,A dog,A cat,2\n")
    assert [(one.text, one.image, one.caption_id) for one in read_captions(path)] == [
        ("A dog", "a.jpg", "a.jpg#0"),
        ("A cat", "a.jpg", "a.jpg#1"),
    ]
    path = write(tmp_path / "c.csv", "image,text,caption1,caption2\na.jpg,Title,A dog,\nb.jpg,Title,A cat,A boat\n")
    notes: list[str] = []
    assert [one.text for one in read_captions(path, notes)] == ["A dog", "A cat", "A boat"]
    assert notes == [f"{path}: skipped 1 columns: text", f"{path}: skipped 1 empty captions"]


def test_columns_of_one_name_that_differ_are_refused_where_they_are_read(tmp_path: Path) -> None:
    """As of two tables that were joined side by side."""
    path = write(tmp_path / "c.csv", "image,caption,split,Split\na.jpg,A dog,train,train\nb.jpg,A cat,test,train\n")
    with pytest.raises(
        PipelineError, match="2 columns are called split, and differ: test and train; leave one of them"
    ):
        read_captions(path)
    path = write(tmp_path / "c.csv", "image,image,caption\na.jpg,b.jpg,A dog\n")
    with pytest.raises(PipelineError, match=r"2 columns are called image, and differ: a\.jpg and b\.jpg"):
        read_captions(path)
    path = write(tmp_path / "c.csv", "filename,filepath,filepath,caption\na.jpg,x,,A dog\nb.jpg,,y,A cat\n")
    with pytest.raises(PipelineError, match="2 columns are called filepath, and differ: x and"):
        read_captions(path)
    for rows in (
        "a.jpg,A dog,test,,1,2\nb.jpg,A cat,,train,1,2\n",
        "a.jpg,A dog,test,Test,1,2\nb.jpg,A cat,nan,train,1,2\n",
    ):
        path = write(tmp_path / "c.csv", f"image,caption,split,Split,score,score\n{rows}")
        assert [one.split for one in read_captions(path)] == ["test", "train"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (",image,caption\n0,a.jpg,A dog\n1,b.jpg,A cat\n", None),  # as pandas writes a table
        ("image,captions,\na.jpg,A dog,A cat\n", "skipped 1 columns: column 3"),
        ("image,caption,,score,score,\na.jpg,A dog,x,1,2,\n", "skipped 2 columns: column 3, score"),
    ],
)
def test_columns_that_are_not_read_are_said_but_for_numbers_of_rows(
    tmp_path: Path, text: str, said: str | None
) -> None:
    notes: list[str] = []
    path = write(tmp_path / "c.csv", text)
    assert read_captions(path, notes)[0].text == "A dog"
    assert notes == ([f"{path}: {said}"] if said else [])


@pytest.mark.parametrize("header", ["image,path,caption", "image,,caption", "image_id,name,caption"])
def test_a_column_of_names_says_more_than_one_of_numbers(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "c.csv", f"{header}\n1,b.jpg,A dog\n2,a.jpg,A cat\n")
    assert [one.image for one in read_captions(path)] == ["b.jpg", "a.jpg"]
    path = write(tmp_path / "c.csv", f"{header.replace(',', ',mask,', 1)}\n1,1.png,b.jpg,A dog\n2,2.png,a.jpg,A cat\n")
    assert [one.image for one in read_captions(path)] == ["b.jpg", "a.jpg"]
    path = write(tmp_path / "c.csv", "image,similar,caption\n1,b.jpg,A dog\n2,a.jpg,A cat\n")
    assert [one.image for one in read_captions(path)] == [
        "1",
        "2",
    ]  # a number may name a photo, and another column another one


@pytest.mark.parametrize(
    "cell",
    ['"[""A dog"", ""It\'s a cat""]"', '"[\'A dog\', ""It\'s a cat""]"', '"[\'A dog\'\n ""It\'s a cat""]"'],
    ids=["json", "pandas", "array"],
)
def test_a_list_of_captions_in_a_field(tmp_path: Path, cell: str) -> None:
    """As the hub's table of Flickr30K has them, and as pandas writes a column of lists."""
    path = write(
        tmp_path / "c.csv",
        f'raw,sentids,split,filename\n{cell},"[0, 1]",val,a.jpg\n"[a sign]",[2],test,b.jpg\n[],[],test,c.jpg\n',
    )
    assert [(one.text, one.image, one.split) for one in read_captions(path)] == [
        ("A dog", "a.jpg", "dev"),
        ("It's a cat", "a.jpg", "dev"),
        ("[a sign]", "b.jpg", "test"),
    ]


@pytest.mark.parametrize("cell", ['"[""A dog"", null]"', "\"['A dog', None]\""], ids=["json", "pandas"])
def test_a_missing_caption_in_a_list_is_an_empty_one(tmp_path: Path, cell: str) -> None:
    notes: list[str] = []
    path = write(tmp_path / "c.csv", f"image,captions\na.jpg,{cell}\n")
    assert [one.text for one in read_captions(path, notes)] == ["A dog"]
    assert notes == [f"{path}: skipped 1 empty captions"]


def test_columns_that_are_not_read_are_said(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", ",image,likes,caption, url\n0,a.jpg,1,A dog,x\n1,b.jpg,,A cat,y\n")
    notes: list[str] = []
    assert [one.image for one in read_captions(path, notes)] == ["a.jpg", "b.jpg"]
    assert notes == [f"{path}: skipped 2 columns: likes, url"]


def test_the_folder_of_a_tables_file_is_part_of_its_name(tmp_path: Path) -> None:
    text = "filepath,File Name,caption\ntrain,1.jpg,A dog\nval,1.jpg,A cat\nval/2.jpg,2.jpg,A boat\n"
    assert [one.image for one in read_captions(write(tmp_path / "c.csv", text))] == [
        "train/1.jpg",
        "val/1.jpg",
        "2.jpg",
    ]


@pytest.mark.parametrize("text", ["b.jpg\tA cat\na.jpg\tA dog\t5\n", "image\tcaption\na.jpg\tA dog\t5\n"])
def test_what_stands_behind_a_second_tab_is_no_caption(tmp_path: Path, text: str) -> None:
    with pytest.raises(PipelineError, match=r"line 2 is 'a\.jpg\\tA dog\\t5'; expected"):
        read_captions(write(tmp_path / "c.tsv", text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('image,caption\na.jpg,"A ""big"" dog, running."\n', ['A "big" dog, running.']),
        ('image,caption\na.jpg,"A dog\nruns"\nb.jpg,A cat\n', ["A dog runs", "A cat"]),
        ("image,caption\na.jpg,Two dogs, running.\n", ["Two dogs, running."]),
        ('a.jpg,"Stop" says the sign\n', ['"Stop" says the sign']),
        (
            "image_name| comment_number| comment\na.jpg| 0| Two dogs .\na.jpg| 4   A dog runs .\n",
            ["Two dogs .", "A dog runs ."],
        ),
        ("\ufeffimage_name,comment_number,comment\na.jpg,0,Two dogs\na.jpg,1,A tree\n", ["Two dogs", "A tree"]),
        ("a.jpg,0,Two dogs, running\na.jpg,1,A tree\n", ["Two dogs, running", "A tree"]),
        ('a.jpg,0,"Two dogs,\nrunning"\n"a.jpg","1","A tree"\n', ["Two dogs, running", "A tree"]),
        ("caption;image\nTwo dogs;a.jpg\n", ["Two dogs"]),
        (
            'a.jpg#0\t"Stop" , says the sign\nb.jpg#0\t"A dog\nc.jpg#0\truns"\n',
            ['"Stop" , says the sign', '"A dog', 'runs"'],
        ),
        ('17\t"A dog\n18\truns"\n', ['"A dog', 'runs"']),
        ('image, caption\na.jpg, "A dog, running"\nb.jpg, A cat\n', ["A dog, running", "A cat"]),
        ('a.jpg, "no" said he, "bye"\nb.jpg, "A dog\n', ['"no" said he, "bye"', '"A dog']),
        ('image,caption\na.jpg,"He said \\"no\\", twice"\nb.jpg,A \\ cat\n', ['He said "no", twice', "A \\ cat"]),
        ('image,caption\na.jpg,A \\"big\\" dog\n', ['A \\"big\\" dog']),
        ("a.jpg,A dog\nb.jpg," + "dog " * 50_000 + "\n", ["A dog"]),
        ("a.jpg,A dog\n\nb.jpg,\nc.jpg,A cat", ["A dog", "A cat"]),
        ('"a;b.jpg";A dog\nc.jpg;A cat', ["A dog", "A cat"]),
    ],
    ids=[
        "quotes",
        "lines",
        "commas",
        "no-csv-quotes",
        "flickr30k",
        "bom-header",
        "numbered",
        "numbered-quoted",
        "columns",
        "token",
        "token-of-numbers",
        "blanks",
        "blanks-no-csv-quotes",
        "spark",
        "backslashes",
        "long",
        "empty",
        "names-with-delimiters",
    ],
)
def test_tables_as_people_have_them(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert [caption.text for caption in read_captions(write(tmp_path / "c.csv", text))] == expected


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg#2\tA cat\na.jpg#0\tA dog\nb.jpg#3\tA tree\n",  # some were left out, others came before
        "a.jpg,2,A cat\na.jpg,0,A dog\nb.jpg,3,A tree\n",
        "image_name| comment_number| comment\na.jpg| 2| A cat\na.jpg| 0| A dog\nb.jpg| 3| A tree\n",
        "a.jpg#0\tA dog\na.jpg#1\t\na.jpg#2\tA cat\nb.jpg#3\tA tree\n",
        "image_name,comment_number,comment\na.jpg,2.0,A cat\na.jpg,0.0,A dog\nb.jpg,3.0,A tree\n",
        "b.jpg#3\tA tree\na.jpg#2\tA cat\na.jpg#0\tA dog\nc.jpg\tMine\n",
    ],
    ids=["token", "columns", "results.csv", "empty", "pandas", "another"],
)
def test_numbers_of_captions_stay(tmp_path: Path, text: str) -> None:
    """Judgements name captions by them."""
    read = {one.caption_id: one.text for one in read_captions(write(tmp_path / "c.token", text))}
    read.pop("c.jpg#0", None)
    assert read == {"a.jpg#2": "A cat", "a.jpg#0": "A dog", "b.jpg#3": "A tree"}


@pytest.mark.parametrize("second", ["a.jpg#3\tA cat", "a.jpg\tA cat"], ids=["twice", "none"])
def test_numbers_of_captions_that_are_not_kept_are_said(tmp_path: Path, second: str) -> None:
    notes: list[str] = []
    path = write(tmp_path / "c.token", f"a.jpg#3\tA dog\n{second}\nb.jpg#2\tA tree\n")
    assert [one.caption_id for one in read_captions(path, notes)] == ["a.jpg#0", "a.jpg#1", "b.jpg#2"]
    (note,) = notes
    assert re.search(r"skipped [12] numbers of captions, of images where some have none or the same: these are", note)


def test_a_number_at_the_end_of_a_name_without_suffix_is_flickrs_where_it_counts_from_0(tmp_path: Path) -> None:
    for text, images in (
        ("image,caption\ndog#1,A dog\ndog#2,Two\n", ["dog#1", "dog#2"]),
        ("image,caption\nx/dog,A dog\nx/dog#1,Two\ncafe\u0301#1,Three\n", ["x/dog", "x/dog#1", "cafe\u0301#1"]),
        ("x/dog.jpg#0\tA dog\nx/dog.jpg#1\tTwo\n", ["x/dog.jpg", "x/dog.jpg"]),
        ("17#0\tA dog\n17#1\tA dog runs\n18#0\tA cat\n", ["17", "17", "18"]),
        ("a.jpg#3\tA dog\n", ["a.jpg"]),
    ):
        assert [caption.image for caption in read_captions(write(tmp_path / "c.csv", text))] == images


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('image,caption\na.jpg,"A dog\nb.jpg,A cat"\n', "line 2 opens a quote that goes on over line 3"),
        (
            'IMG 5 (1).heic,"A boy\nIMG 5 (1).heic,A boy runs\nIMG 5 (1).heic,A boy"\n',
            "line 1 opens a quote that goes on",
        ),
        ('image\tcaption\n17\t"A dog\n18\truns"\n', "line 2 opens a quote that goes on over line 3"),
        ('id,image,caption\n1,a.jpg,"A dog\n2,b.jpg,runs"\n', "line 2 opens a quote that goes on over line 3"),
        ('caption,image\n"A dog,a.jpg\nruns",b.jpg\n', "line 2 opens a quote that goes on over line 2"),
        ("image,sentences\na.jpg,\"[{'raw': 'A dog'}]\"\n", "line 2 has the caption .*an object of Python or JSON"),
        ("image,captions\na.jpg,\"['A dog' 'A cat' ... 'A boat']\"\n", "line 2 has the caption .*an object of Python"),
        ('image,caption\na.jpg,"A dog\nruns\n', "line 2 opens a quote that is not closed"),
        ('a.jpg,"Hi", he said\nb.jpg,A cat\n', "line 1 .* quoted and unquoted text side by side"),
        ("image,caption,x\na.jpg,A dog\n", "line 2 is 'a.jpg,A dog'; expected 3 columns"),
        ("image,caption\n,A dog\n", "line 2 is ',A dog'"),
        ("image,width,height\na.jpg,1,2\n", "line 1 has the columns image, width, height"),
        (
            "path,caption,split\na.jpg,A dog,test\n",
            "line 1 has the columns path, caption, split; expected one of file_name",
        ),
        (
            "a.jpg,A dog,train\nb.jpg,A cat,val\n",
            r"every line has more than two columns, such as \['a\.jpg', 'A dog', 'train'\]",
        ),
        ("0,0.jpg,A dog\n1,1.jpg,A cat\n", "every line has more than two columns"),
        ("a.jpg,A dog,Dogs run\nb.jpg,A cat,Two cats, black\n", "every line has more than two columns"),
        ("a.jpg;A dog;0.93\nb.jpg;A cat, black;1\n", "every line has more than two columns"),
        ("a.jpg\tA dog\t5\n", "every line has more than two columns"),
    ],
)
def test_tables_that_can_be_read_in_two_ways_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        read_captions(write(tmp_path / "c.csv", text))
