"""People's grades beside the recalls."""

import json
from pathlib import Path

import numpy as np
import pytest

from matcher.data import CaptionedImages
from matcher.metrics import kendall
from pipeline.errors import PipelineError
from pipeline.inputs.splits import Split
from pipeline.judgements import Judgement, locate, read_judgements
from pipeline.store.reader import open_stores
from tests.world import scan


def test_reads_tables_with_and_without_header(tmp_path: Path) -> None:
    path = tmp_path / "judgements.tsv"
    path.write_text('1.jpg\t1.jpg#0\t1\t2\t4\n2.jpg\ta "big" dog\t3\t3\t3\n\n')  # as Flickr8k's ExpertAnnotations.txt
    found = read_judgements(path)
    assert [(one.image, one.caption, one.grades) for one in found] == [
        ("1.jpg", "1.jpg#0", (1.0, 2.0, 4.0)),
        ("2.jpg", 'a "big" dog', (3.0, 3.0, 3.0)),
    ]
    path.write_text('image,caption,grade\n1.jpg,"a dog, a cat",0.5\n2.jpg,a boat,1\n')
    assert [one.caption for one in read_judgements(path)] == ["a dog, a cat", "a boat"]


def test_of_crowdflowers_three_columns_the_share_is_the_grade(tmp_path: Path) -> None:
    path = tmp_path / "CrowdFlowerAnnotations.txt"
    path.write_text("1.jpg\t1.jpg#2\t1.0\t3\t0\n1.jpg\t2.jpg#0\t0\t0\t3\n2.jpg\t1.jpg#2\t0.333333\t1\t2\n")
    assert [one.grades for one in read_judgements(path)] == [(1.0,), (0.0,), (0.333333,)]


def test_a_header_says_which_columns_are_grades(tmp_path: Path) -> None:
    path, notes = tmp_path / "judgements.csv", list[str]()
    path.write_text("image,caption,rater_id,grade_1,grade_2,seconds\n1.jpg,a dog,17,1,2,8.5\n2.jpg,a cat,4,3,3,9\n")
    assert [one.grades for one in read_judgements(path, notes)] == [(1.0, 2.0), (3.0, 3.0)]
    assert notes == [f"--judgements {path}: not counted as grades: rater_id, seconds"]
    path.write_text("image,caption,who,how good\n1.jpg,a dog,17,1\n2.jpg,a cat,4,3\n")
    with pytest.raises(PipelineError, match="which of the columns who, how good are grades"):
        read_judgements(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.jpg\ta dog\n", "line 1 is"),
        ("image,caption,grade\n1.jpg,a dog,good\n", "line 2 is"),
        ("1.jpg\ta dog\tnan\n2.jpg\ta cat\t1\n3.jpg\ta cat\t2\n", "line 1 is"),
        ("1.jpg\ta dog\tn/a\n2.jpg\ta cat\t1\n3.jpg\ta cat\t2\n", "line 1 is"),
        ("1.jpg\ta dog\t1\n2.jpg\ta cat\tinf\n", "line 2 is"),
        ("1.jpg\ta dog\t1\n2.jpg\ta cat\t1\n", "fewer than two different grades"),
        ("image,source,caption,grade\n1.jpg,web,a dog,1\n2.jpg,web,a cat,2\n", "the second column is 'source'"),
        ("", "fewer than two different grades"),
        ("1.jpg\ta dog\t1\n2.jpg\t\t2\n", "line 2 is"),
        ("1.jpg\ta dog\t3\tn/a\n2.jpg\ta cat\t1\t1\n3.jpg\ta cat\t2\t1\n", "line 1 is"),  # no header
        ("image,caption,grade\n1.jpg,a dog,1,5\n2.jpg,a cat,2\n", "line 2 is"),
        (f"1.jpg,{'a' * 200_000},1\n", "not readable .field larger than field limit"),
    ],
)
def test_what_is_no_judgement_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "judgements.tsv"
    path.write_text(text)
    with pytest.raises(PipelineError, match=message):
        read_judgements(path)


def test_evaluate_prints_and_writes_the_agreement(inside: Path) -> None:
    assert scan("evaluate", "--run", "runs/t2i_mean", "--split", "all").exit_code == 0
    rankings = json.loads(Path("runs/t2i_mean/evaluation/all_rankings.json").read_text())["image_retrieval"]
    lines, grades = [], []
    for row in rankings[:6]:  # the best photo of a caption has grade 3, the third 2, the last of the ten 1
        for grade, image in zip((3, 2, 1), (row["image_ids"][place] for place in (0, 2, 9)), strict=True):
            lines.append(f"{image}\t{row['caption_id']}\t{grade}\t{grade}")
            grades += [grade, grade]
    Path("grades.tsv").write_text("\n".join(lines))
    said = scan("evaluate", "--run", "runs/t2i_mean", "--split", "all", "--judgements", "grades.tsv")
    assert said.exit_code == 0, said.output
    assert "agreement with 36 grades of 18 pairs: Kendall's τ-c" in said.output
    found = json.loads(Path("runs/t2i_mean/evaluation/all.json").read_text())["judgements"]
    assert 0 < found["tau_b"] <= 1
    perfect = kendall(np.array(grades, dtype=float), np.array(grades))
    assert found["tau_c"] <= perfect[1]
    Path("grades.tsv").write_text("nowhere.jpg\ta dog\t1\nnowhere.jpg\ta cat\t2\n")
    said = scan("evaluate", "--run", "runs/t2i_mean", "--split", "all", "--judgements", "grades.tsv")
    assert said.exit_code == 2
    assert "line 1: image 'nowhere.jpg' is in no store of the evaluation; name the stores" in said.output


@pytest.mark.parametrize("caption", ["1056338697_4798441efc.jpg#2", "7041", "qwerty asdf"])
def test_ids_of_captions_that_are_not_evaluated_are_not_taken_for_sentences(inside: Path, caption: str) -> None:
    image = "COCO_train2014_000000000003.jpg"
    Path("grades.tsv").write_text(f"{image}\tdog\t1\n{image}\t{caption}\t2\n")
    said = scan("evaluate", "--run", "runs/t2i_mean", "--judgements", "grades.tsv")
    assert said.exit_code == 2
    assert f"line 2: caption {caption!r} is no id of a caption in the split dev" in said.output


def test_an_id_of_two_captions_is_refused(inside: Path, tmp_path: Path) -> None:
    collection = open_stores(["features/train2014"])
    captions = CaptionedImages(collection, ["a dog", "a cat", "a cat"], np.array([0, 1, 2]), np.arange(3))
    ids = list(collection.image_ids[:3])
    split = Split("dev", collection, captions, ids, [7, 7, 8], [0, 0, 1])
    for image, caption, kind in ((ids[0], "0", "caption '0'"), ("7", "1", "image '7'")):
        with pytest.raises(PipelineError, match=f"line 1: {kind} is the id of several in the split dev; name the"):
            locate([Judgement(image, caption, (1.0,), "line 1")], split, [])
    assert locate([Judgement("8", "1", (1.0,), "line 1")], split, []) == [(2, "a cat")]


def test_images_named_in_other_folders_are_said(inside: Path) -> None:
    name = "COCO_train2014_000000000003.jpg"
    for folder, is_said in (("train2014/", False), ("2020/", True)):
        Path("grades.tsv").write_text(f"{folder}{name}\ta dog\t1\n{folder}{name}\ta tree\t2\n")
        said = scan("evaluate", "--run", "runs/t2i_mean", "--split", "all", "--judgements", "grades.tsv")
        note = f"note: 1 judged images are named in other folders: 2020/{name} is taken for {name}"
        assert (note in said.output) == is_said, said.output


def test_judgements_are_a_regular_file() -> None:
    with pytest.raises(PipelineError, match="not a regular file"):
        read_judgements(Path("/dev/zero"))
