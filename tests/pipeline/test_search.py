"""The way to an answer: from Python, by name, with unknown words, from a cache, and between photos."""

import json
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import pipeline
from matcher.collection import EncodedCaptions
from pipeline import caption_cache, search
from pipeline.answer import Answer, Hit
from pipeline.caption_cache import StoredWords, caption_embeddings
from pipeline.caption_ranking import caption_scores
from pipeline.errors import PipelineError
from pipeline.explanation import Explanation, best_boxes
from pipeline.inputs.captions import Caption, read_captions
from pipeline.pages.answers import write_page
from pipeline.pages.explanation import draw
from pipeline.photo_lookup import stored_photo
from pipeline.runs import find_run, load_run
from pipeline.search import Search, open_search
from tests.stores import make_store
from tests.world import HEAVY, PHOTO, extract_again, imported_by, scan


def test_five_lines_of_python(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = search.__doc__.split("\n\n")[1]  # type: ignore[union-attr]
    exec("\n".join(line.removeprefix("    ") for line in example.splitlines()), {})
    printed = capsys.readouterr().out.splitlines()
    hits = json.loads(scan("retrieve", "--query", "two dogs play by a tree", "--top", "5", "--json").stdout)[0]["hits"]
    assert printed == [f"{hit['score']} {hit['path']} {hit['boxes'][0]['name']}" for hit in hits]


def test_a_query_imports_what_it_needs_and_no_more(inside: Path) -> None:
    imported = imported_by("retrieve", "--query", "a dog", "--device", "cpu")
    assert "torch" in imported
    assert not imported & (HEAVY | {"tokenizers", "jinja2"})


def test_embeddings_that_are_kept_give_the_same_answers(opened: Search) -> None:
    assert isinstance(opened.embeddings, torch.Tensor)
    assert opened.embeddings is opened.embeddings  # made once
    again = Search(opened.run, opened.collection, memory_budget=0)
    assert not isinstance(again.embeddings, torch.Tensor)
    for kept, read in zip(opened.photos(["a dog", "a tree"]), again.photos(["a dog", "a tree"]), strict=True):
        assert [hit.image for hit in kept.hits] == [hit.image for hit in read.hits]
        np.testing.assert_allclose([hit.score for hit in kept.hits], [hit.score for hit in read.hits], atol=1e-3)


def test_pages_and_filters_of_results(opened: Search) -> None:
    (everything,) = opened.photos(["a dog"], 20)
    (second,) = opened.photos(["a dog"], 5, offset=5)
    assert second.hits == everything.hits[5:10]
    rows = np.array([3, 8, 9])
    (some,) = opened.photos(["a dog"], 10, rows=rows)
    assert {hit.image for hit in some.hits} == {opened.collection.image_ids[row] for row in rows}
    assert some.searched == 3
    assert opened.photos(["a dog"], 5, offset=40)[0].hits == ()


def test_a_mask_chooses_rows_and_what_means_nothing_is_refused(opened: Search) -> None:
    mask = np.arange(len(opened.collection)) >= 18
    for some in (mask, [19, 18, 19], np.array([-1, -2])):
        (answer,) = opened.photos(["a dog"], rows=some)
        assert {hit.image for hit in answer.hits} == set(opened.collection.image_ids[18:])
        assert answer.searched == len(answer.hits) == 2
        assert opened.similar(opened.collection.image_ids[0], rows=some).searched == 2
    for wrong in ({"top": -1}, {"offset": -1}, {"rows": [20]}, {"rows": mask[:5]}):
        with pytest.raises((ValueError, IndexError)):
            opened.photos(["a dog"], **wrong)
        with pytest.raises((ValueError, IndexError)):
            opened.similar(opened.collection.image_ids[0], **wrong)
    with pytest.raises(TypeError, match="expected a list of sentences"):
        opened.photos("a dog")


def test_the_json_is_as_its_schema_says(inside: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(pipeline.__file__).parent / "retrieve.schema.json").read_text())
    for asked in (["--query", "a dog"], ["--query", "a hous"], ["--image", PHOTO.format(3)]):
        said = scan("retrieve", *asked, "--json", "--device", "cpu")
        jsonschema.validate(json.loads(said.stdout), schema, jsonschema.Draft202012Validator)


def test_similar_photos(opened: Search) -> None:
    own = PHOTO.format(4)
    answer = opened.similar(own, 19)
    assert len(answer.hits) == 19
    assert own not in {hit.image for hit in answer.hits}  # itself apart
    assert opened.similar(np.int64(opened.collection.row(own)), 19) == answer
    assert answer.hits[0].score >= answer.hits[-1].score
    words = search.PaddedWords(search.encode_regions(opened.run, opened.collection[own])[None], [6])
    model_scores = opened.run.model.similarities(opened.embeddings, words, between_photos=True)[:, 0]
    assert int(model_scores.argmax()) == opened.collection.row(own)  # nothing is more like it than itself
    embeddings = search.encode_regions(opened.run, opened.collection[own])
    assert opened.similar(embeddings, 20).hits[0].image == own  # of a photo that no store need have


def test_regions_are_found_only_where_they_are_asked_for(opened: Search) -> None:
    shown, bare = (opened.photos(["a dog"], 5, boxes=boxes)[0].hits for boxes in (True, False))
    assert all(hit.boxes for hit in shown)
    assert tuple(replace(hit, boxes=()) for hit in shown) == bare


def test_caption_embeddings_are_kept(opened: Search, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_cache, "WORTH_KEEPING", 1)
    shutil.rmtree(opened.run.folder / "cache", ignore_errors=True)
    captions = read_captions(opened.run.captions()[0])
    texts = [caption.text for caption in captions]
    regions = opened.collection.regions(3)
    wanted = caption_scores(opened.run, regions, texts)
    found = caption_embeddings(opened.run, texts)
    assert isinstance(found, StoredWords)
    np.testing.assert_allclose(caption_scores(opened.run, regions, found), wanted, atol=1e-3)
    (path,) = (opened.run.folder / "cache").iterdir()

    def no_pass(self: EncodedCaptions, captions: object) -> None:
        raise AssertionError("encoded again")

    with monkeypatch.context() as patch:
        patch.setattr(EncodedCaptions, "pack", no_pass)
        answer = opened.captions([PHOTO.format(3)], captions, 5)[0]
        np.testing.assert_allclose([hit.score for hit in answer.hits], sorted(wanted, reverse=True)[:5], atol=1e-3)
    content = path.read_bytes()
    for damaged in (content[:-1], bytes([content[0] ^ 1]) + content[1:], b""):  # truncated, changed, empty: rebuilt
        path.write_bytes(damaged)
        assert isinstance(caption_embeddings(opened.run, texts), StoredWords)
        assert path.read_bytes() == content
    caption_embeddings(opened.run, [*texts, "a dog"])
    assert len(list(path.parent.iterdir())) == 2  # other captions, another cache
    caption_embeddings(replace(opened.run, sha256="0" * 64), texts)
    assert len(list(path.parent.iterdir())) == 3  # another model, another cache
    shutil.rmtree(path.parent)


def test_a_cache_that_cannot_be_written_is_said(opened: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_cache, "WORTH_KEEPING", 1)
    Path(opened.run.folder / "cache").write_text("in the way")
    notes: list[str] = []
    assert isinstance(caption_embeddings(opened.run, ["a dog"], notes.append), EncodedCaptions)
    assert notes[0].startswith("note: caption embeddings are not kept:")
    Path(opened.run.folder / "cache").unlink()


def with_calibration(opened: Search, calibration: Any) -> Search:
    return Search(replace(opened.run, calibration=calibration), opened.collection)


def weak_below(limit: float) -> SimpleNamespace:
    return SimpleNamespace(is_weak=lambda score, photos: score < limit)


def test_weak_matches(opened: Search) -> None:
    assert opened.run.calibration is not None  # of the run, made when it was trained
    (answer,) = with_calibration(opened, None).photos(["a dog"], 4)
    assert not any(hit.weak for hit in answer.hits)  # a run without calibration claims nothing
    limit = (answer.hits[1].score + answer.hits[2].score) / 2
    (answer,) = with_calibration(opened, weak_below(limit)).photos(["a dog"], 4)
    assert [hit.weak for hit in answer.hits] == [False, False, True, True]
    assert not answer.weak
    assert str(answer).count("(weak)") == 2
    hopeless = with_calibration(opened, weak_below(2.0)).photos(["a dog"], 4)[0]
    assert hopeless.weak
    assert "note: no good match: the best is weak" in str(hopeless)


def test_captions_that_fit_a_photo_by_chance_are_weak(opened: Search, tmp_path: Path) -> None:
    texts = ("a dog", "a cat by a tree", "a house", "two boats")
    captions = [Caption(text, PHOTO.format(0), 0, number) for number, text in enumerate(texts)]
    (answer,) = opened.captions([PHOTO.format(3)], captions, 4)
    limit = (answer.hits[1].score + answer.hits[2].score) / 2
    judge = SimpleNamespace(is_weak=lambda score, searched: searched == 4 and score < limit)  # of the captions
    (answer,) = with_calibration(opened, judge).captions([PHOTO.format(3)], captions, 4)
    assert [hit.weak for hit in answer.hits] == [False, False, True, True]
    assert str(answer).count("(weak)") == 2
    write_page([answer], tmp_path / "page.html", opened)
    assert (tmp_path / "page.html").read_text().count("weak match") == 2


def test_a_name_with_line_breaks_is_one_row() -> None:
    answer = Answer(
        "a dog",
        2,
        (Hit(1, 0.5, "a\nb\tc.jpg", changed=False), Hit(2, 0.4, "d.jpg", caption="a dog\nruns", changed=False)),
    )
    _, *rows = str(answer).splitlines()
    assert rows == [r"   1   0.5000  a\nb\tc.jpg", r"   2   0.4000  a dog\nruns  [d.jpg]"]


def test_an_explanation_marks_what_a_search_marks(opened: Search, tmp_path: Path) -> None:
    (hit,) = with_calibration(opened, weak_below(2.0)).photos(["a dog"], 1)[0].hits
    assert hit.weak
    for limit, count in ((hit.score + 1e-4, 1), (hit.score - 1e-4, 0)):
        found = with_calibration(opened, weak_below(limit)).explain(hit.image, "a dog")
        draw(found, tmp_path / "page.html")
        for shown in (str(found), (tmp_path / "page.html").read_text()):
            assert shown.count(" (weak match) by run") == count
    other = "i2t" if opened.run.model.direction == "t2i" else "t2i"  # whose scores are others
    assert not with_calibration(opened, weak_below(2.0)).explain(hit.image, "a dog", other).weak


def test_the_newest_run_that_fits_is_taken_and_else_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find_run("starter")
    kind = load_run(shipped, torch.device("cpu")).data["extraction"]
    make_store(Path("features/windows"), ["1.jpg"], feature_dim=1280, extraction=kind)
    Path("starter").mkdir()  # of photos, say
    notes: list[str] = []
    assert open_search(report=notes.append).run.is_shipped
    assert open_search("starter").run.is_shipped
    no_run = "runs: no trained run found (looked for runs/*/best.safetensors)"
    assert notes == [f"note: {tmp_path}/{no_run}; the starter's run is used"]
    for age, (name, extraction) in enumerate([("newest", {"other": 1}), ("older", kind), ("oldest", kind)]):
        run = shutil.copytree(shipped, Path("runs", name), ignore=shutil.ignore_patterns("photos", "*.py"))
        data = json.loads((run / "data.json").read_text())
        data["data"]["extraction"] = extraction
        (run / "data.json").write_text(json.dumps(data))
        os.utime(run / "best.safetensors", (1e9 - age, 1e9 - age))
    notes.clear()
    assert open_search(report=notes.append).run.folder == Path("runs/older")
    assert [note.endswith("runs/older is used") for note in notes] == [True]
    with pytest.raises(PipelineError, match="runs/newest cannot read it"):
        open_search("runs/newest", ["features/windows"])  # one that was asked for is never replaced
    shutil.rmtree("runs")
    with pytest.raises(
        PipelineError, match=r"no trained run found.*features/nothing: not a feature store"
    ):  # both reasons
        open_search(features=["features/nothing"])
    twice = open_search(features=["features/windows", "./features/windows/"], report=notes.append)
    assert len(twice.collection) == 1


def test_without_boxes_none_are_printed(opened: Search) -> None:
    photo = stored_photo(opened.collection, 0)
    bare = replace(photo, regions=replace(photo.regions, boxes=np.zeros_like(photo.regions.boxes)))
    words = opened.run.model.encode_captions(["a dog"])[0][0]
    assert best_boxes(opened.run, opened.collection, bare, words) == ()
    assert len(best_boxes(opened.run, opened.collection, photo, words)) == 3
    assert "[" not in str(Answer("a dog", 1, (Hit(1, 0.5, "x.jpg"),)))


def test_a_sentence_is_encoded_again_only_for_its_boxes(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_search("runs/t2i_mean", device="cpu", report=lambda _: None)
    encode, asked = opened.run.model.encode_captions, []
    monkeypatch.setattr(opened.run.model, "encode_captions", lambda texts: asked.extend(texts) or encode(texts))
    bare = opened.photos(["a dog"], boxes=False)
    without = len(asked)
    full = opened.photos(["a dog"])
    assert len(asked) - without == without + 1
    assert [(hit.image, hit.score, hit.weak) for hit in bare[0].hits] == [
        (hit.image, hit.score, hit.weak) for hit in full[0].hits
    ]


def test_next_steps_are_quoted(inside: Path) -> None:
    said = scan("retrieve", "--query", "a dog's tree", "--top", "1", "--run", "runs/t2i_mean")
    first = said.stdout.splitlines()[-1].strip()
    assert first.startswith("scan-pipeline explain --image COCO_train2014_")
    assert """--caption 'a dog'"'"'s tree' --run runs/t2i_mean""" in first
    assert scan(*shlex.split(first)[1:]).exit_code == 0


def test_shares_of_words() -> None:
    contributions = np.array([[0.2, 0.1], [0.1, -0.2]])
    photo = np.zeros((8, 8, 3), np.uint8)
    boxes, names = np.zeros((2, 4)), ["brown dog", "tree"]
    found = Explanation(
        photo,
        "x",
        "dog runs.",
        "t2i",
        0.5,
        ["dog", "runs"],
        contributions,
        0.5,
        contributions,
        0.3,
        boxes,
        names,
        {},
        "a",
    )
    np.testing.assert_allclose(found.shares, [1, 0])  # what takes away adds nothing
    nothing = replace(found, contributions=-np.abs(contributions))
    assert str(nothing).splitlines()[0] == "score 0.5000 by run a; no word adds to it"
    assert str(found).splitlines() == [
        "score 0.5000 by run a; of what the words add to it:",
        "  100%  dog   brown dog",
        "    0%  runs  brown dog",
        "(the words add +0.200, the sentence's start, end and punctuation +0.300)",
    ]


def test_a_search_that_is_called_marks_photos_that_changed(own_world: Path) -> None:
    extract_again()
    said: list[str] = []
    called = open_search(features=["features/mine"], report=said.append)
    first, second = called("a dog by a tree", 2)
    assert not first.changed
    Path(first.path).write_bytes(Path(second.path).read_bytes())
    again = called("a dog by a tree", 2)
    assert [hit.changed for hit in again] == [True, False]
    for hit, notes in ((second, []), (first, [f"note: {first.path}: changed since it was extracted, and is compared as it was; run extract again"])):  # fmt: skip
        said.clear()
        called.similar(called.collection.row(hit.image))
        assert said == notes
