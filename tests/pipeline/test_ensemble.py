"""Several runs search together: a score is the mean of theirs, over the candidates of any."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from matcher.vocabulary import SPECIAL, Vocabulary
from pipeline import search
from pipeline.ensemble import Ensemble, open_ensemble
from pipeline.errors import PipelineError
from pipeline.gallery import first_stage
from pipeline.gallery.embeddings import store_embeddings
from pipeline.gallery.first_stage import build_first_stage
from pipeline.inputs.captions import Caption
from pipeline.runs import TrainedRun
from pipeline.search import Search
from pipeline.store.reader import open_stores
from tests.pipeline.gallery.test_embeddings import make_run
from tests.pipeline.gallery.test_first_stage import PHOTOS, ROOT, SENTENCES, ids
from tests.stores import make_store
from tests.world import PHOTO, scan

QUERIES = ["a dog", "a dog by a tree", "tree tree dog"]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[TrainedRun]:
    """Two runs over 120 photos, which are many here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "EXACT_BELOW", 50)
    monkeypatch.setattr(first_stage, "MOST_CANDIDATES", 1)  # random models need almost all
    make_store(Path("features/a"), ids(PHOTOS), shard_size=16)
    return [make_run(Path(f"runs/{name}"), seed) for seed, name in enumerate("xy")]


def opened(run: TrainedRun, indexed: int = 0) -> Search:
    """A search with a run; with an index that takes so many candidates."""
    collection = open_stores(["features/a"])
    if indexed:
        embeddings = store_embeddings(run, collection, ROOT, report=lambda line: None)
        build_first_stage(run, collection, embeddings, ROOT, lambda: (SENTENCES, ""), report=lambda line: None)
    found = Search(run, collection, index=ROOT, report=lambda line: None)
    if indexed:
        assert found.first_stage is not None
        found.first_stage.candidates = indexed
    return found


def scores(search: Search, **options: bool) -> list[dict[str, float]]:
    """For each query the score of each photo that was compared."""
    answers = search.photos(QUERIES, PHOTOS if options else 12, boxes=False, **options)
    return [{hit.image: hit.score for hit in answer.hits} for answer in answers]


def test_a_score_is_the_mean_of_the_runs(runs: list[TrainedRun]) -> None:
    members = [opened(run) for run in runs]
    first, second = (scores(member, exact=True) for member in members)
    for one, other, mean in zip(first, second, scores(Ensemble(members), exact=True), strict=True):
        assert len(mean) == PHOTOS
        assert list(mean.values()) == sorted(mean.values(), reverse=True)
        for image, score in mean.items():
            assert score == pytest.approx((one[image] + other[image]) / 2, abs=1e-5)


def test_the_candidates_of_any_run_are_compared_by_all(runs: list[TrainedRun]) -> None:
    members = [opened(run, indexed=60) for run in runs]
    ensemble = Ensemble(members)
    every = scores(ensemble, exact=True)
    for found, mean in zip(scores(ensemble), every, strict=True):
        assert len(found) == 12
        assert found == pytest.approx({image: mean[image] for image in found}, abs=1e-5)
    compared = [answer.compared for answer in ensemble.photos(QUERIES, boxes=False)]
    assert all(60 <= count < PHOTOS for count in compared)
    assert max(compared) > 60  # two runs do not agree on all
    rows = np.arange(0, PHOTOS, 2)
    (answer,) = ensemble.photos(QUERIES[:1], 100, rows=rows, boxes=False)
    assert {hit.image for hit in answer.hits} == {f"{row}.jpg" for row in rows}


def test_where_one_run_has_no_index_all_photos_are_compared(runs: list[TrainedRun]) -> None:
    ensemble = Ensemble([opened(runs[0], indexed=60), opened(runs[1])])
    assert scores(ensemble) == [dict(list(mean.items())[:12]) for mean in scores(ensemble, exact=True)]
    assert ensemble.photos(QUERIES)[0].compared == 0


def test_captions_words_and_what_one_run_alone_can_answer(runs: list[TrainedRun]) -> None:
    runs[1].model.vocabulary = Vocabulary([*SPECIAL, "dog", "tre"])
    members = [opened(run) for run in runs]
    ensemble = Ensemble(members)
    assert dict(ensemble.photos(["a dog by a tree"])[0].unknown)["tree"] == "tre"
    with pytest.raises(PipelineError, match="runs/y knows none of these words"):
        ensemble("tree")
    texts = [Caption(text, "1.jpg", "1.jpg", number) for number, text in enumerate(("dog", "dog dog"))]
    one, other, mean = (
        {hit.caption: hit.score for hit in searcher.captions(["3.jpg"], texts)[0].hits}
        for searcher in (*members, ensemble)
    )
    assert mean["dog"] == pytest.approx((one["dog"] + other["dog"]) / 2, abs=1e-5)
    with pytest.raises(PipelineError, match="photos like a photo, by runs/x, runs/y: one run compares photos"):
        ensemble.similar("3.jpg")


def test_the_command_line_takes_several_runs(inside: Path, tmp_path: Path) -> None:
    other, page = tmp_path / "other", tmp_path / "page.html"
    shutil.copytree("runs/t2i_mean", other)
    query = ["retrieve", "--query", "a dog by a tree", "--features", "features/train2014", "--run", "runs/t2i_mean"]
    found = scan(*query, "--run", str(other), "--html", str(page))
    assert found.exit_code == 0, found.output
    assert f"run: runs/t2i_mean, {other}; searching 20 photos" in found.output
    assert f"run runs/t2i_mean, {other} (weak matches are not marked) ·" in page.read_text()
    assert "(weak)" not in found.output
    assert f"note: {other} is the same model as runs/t2i_mean: it counts twice" in found.stderr
    unmarked = "note: no match is marked as weak: "
    assert f"{unmarked}scores of several runs together are not calibrated" in found.stderr
    assert unmarked not in scan(*query).stderr
    (other / "calibration.json").unlink()
    for command in (query, ["explain", "--image", "COCO_train2014_000000000003", "--caption", *query[2:]]):
        assert f"{unmarked}the run is not calibrated" in scan(*command[:-1], str(other)).stderr
    assert "--run runs/t2i_mean" in found.output.split("next:")[1]
    one, both = (json.loads(scan(*query, *more, "--json").stdout) for more in ((), ("--run", str(other))))
    assert [hit["image"] for hit in one[0]["hits"]] == [hit["image"] for hit in both[0]["hits"]]  # the same model twice
    refused = scan(*query, "--run", "starter")
    assert refused.exit_code == 2
    assert "cannot read it" in refused.output


def test_one_run_or_none_is_a_search_as_ever(inside: Path) -> None:
    for runs in ([], ["runs/t2i_mean"]):
        assert type(open_ensemble(runs, report=lambda line: None)) is Search


def test_a_search_takes_each_caption_once_and_ignores_no_option(own_world: Path) -> None:
    own = "coco/annotations/captions_train2014.json"
    asked = ["retrieve", "--image", PHOTO.format(3), "--json"]
    once, twice = (scan(*asked, *["--captions", own] * times) for times in (1, 2))
    assert twice.stdout == once.stdout != ""
    for option in ("--captions", "--weights"):
        refused = scan("retrieve", "--query", "a dog", option, own)
        assert refused.exit_code == 2
        assert "give --image ID|PATH" in refused.stderr
