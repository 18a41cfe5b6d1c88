"""Two stages give what one gives: over every candidate, under filters, after photos came and went, and after any kill."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from matcher.collection import EncodedCaptions
from pipeline import index, search
from pipeline.answer import Answer
from pipeline.errors import PipelineError
from pipeline.gallery import first_stage
from pipeline.gallery.embeddings import generation, store_embeddings
from pipeline.gallery.first_stage import FirstStage, Measured, build_first_stage, open_first_stage
from pipeline.runs import TrainedRun
from pipeline.search import Search
from pipeline.store.reader import open_stores
from tests.faults import at_step, forked, in_clean_process
from tests.pipeline.gallery.test_embeddings import files, make_run
from tests.stores import make_store
from tests.world import scan

PHOTOS = 120
WORDS = ("dog", "tree")
SENTENCES = [" ".join(WORDS[int(bit)] for bit in f"{number:06b}") for number in range(64)]
ROOT = Path("index")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a store of 120 photos, which are many here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "EXACT_BELOW", 50)
    monkeypatch.setattr(first_stage, "MOST_CANDIDATES", 1)  # random models need almost all
    make_store(Path("features/a"), ids(PHOTOS), shard_size=16)
    return tmp_path


def ids(count: int) -> list[str]:
    return [f"{number}.jpg" for number in range(count)]


def build(run: TrainedRun, root: Path = ROOT, **options: object) -> Measured:
    collection = open_stores(["features/a"])
    embeddings = store_embeddings(run, collection, root, report=lambda line: None)
    return build_first_stage(
        run, collection, embeddings, root, lambda: (SENTENCES, "captions"), report=lambda line: None, **options
    )  # type: ignore[arg-type]


def opened(run: TrainedRun, root: Path = ROOT) -> FirstStage | None:
    collection = open_stores(["features/a"])
    return open_first_stage(run, collection, store_embeddings(run, collection, root, report=lambda line: None), root)


def searching(run: TrainedRun, **options: object) -> Search:
    return Search(run, open_stores(["features/a"]), index=ROOT, report=lambda line: None, **options)  # type: ignore[arg-type]


def found(answer: Answer) -> list[tuple[str, float]]:
    return [(hit.image, round(hit.score, 5)) for hit in answer.hits]


def test_exact_equals_two_stages_over_every_candidate(place: Path) -> None:
    run = make_run(Path("runs/x"))
    build(run)
    searcher = searching(run)
    assert searcher.first_stage is not None
    searcher.first_stage.candidates = PHOTOS - 1
    exact, two = (searcher.photos(SENTENCES[:5], 20, exact=exact) for exact in (True, False))
    plain = Search(run, searcher.collection).photos(SENTENCES[:5], 20)
    for one, other, third in zip(exact, two, plain, strict=True):
        assert (one.compared, other.compared, one.searched) == (0, PHOTOS - 1, PHOTOS)
        assert found(one)[:15] == found(other)[:15]
        np.testing.assert_allclose([h.score for h in one.hits], [h.score for h in third.hits], atol=1e-3)
    assert "compared exactly" in str(two[0])
    assert "compared exactly" not in str(exact[0])


def test_both_stages_encode_a_sentence_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(Path("runs/x"))
    build(run)
    searcher, encoded = searching(run), []
    assert searcher.first_stage is not None
    searcher.first_stage.candidates = 20
    encode = run.model.encode_tokens
    monkeypatch.setattr(run.model, "encode_tokens", lambda *a: (encoded.append(len(a[0])), encode(*a))[1])
    answers = searcher.photos(SENTENCES[:3], boxes=False)
    assert [answer.compared for answer in answers] == [40, 40, 40]
    assert encoded == [3]


def test_so_many_candidates_as_were_measured_hold_the_best(place: Path) -> None:
    run = make_run(Path("runs/x"))
    measured = build(run)
    assert 0 < measured.candidates <= PHOTOS
    assert measured.sentences == 32
    assert measured.recall["5000"] == 1
    searcher = searching(run)
    held = [
        len({*dict(found(one))} & {*dict(found(other))})
        for one, other in zip(searcher.photos(SENTENCES[:30], exact=True), searcher.photos(SENTENCES[:30]), strict=True)
    ]
    assert np.mean(held) >= 9.5
    assert searcher.photos(["a dog"], candidates=PHOTOS)[0].compared == 0  # that is all of them
    assert measured.among(PHOTOS * 10) > 4 * measured.candidates
    assert measured.among(10) == measured.candidates


def test_filters_equal_brute_force(place: Path) -> None:
    run = make_run(Path("runs/x"))
    build(run)
    searcher = searching(run)
    assert searcher.first_stage is not None
    searcher.first_stage.candidates = 20
    for size in (3, 20, 45):
        rows = np.sort(np.random.default_rng(size).choice(PHOTOS, size, replace=False))
        every = searcher.photos(["a dog"], PHOTOS, exact=True)[0]
        wanted = [pair for pair in found(every) if searcher.collection.row(pair[0]) in rows][:10]
        (answer,) = searcher.photos(["a dog"], 10, rows=rows, candidates=44)
        assert len(found(answer)) == min(10, size)  # fewer only where fewer exist
        assert found(answer)[:5] == wanted[:5]
        assert answer.searched == size
    own = searcher.collection.image_ids[7]
    assert found(searcher.similar(own, 5, candidates=PHOTOS - 2))[:3] == found(searcher.similar(own, 5, exact=True))[:3]
    assert own not in dict(found(searcher.similar(own, 50)))


def test_where_the_best_word_decides_each_word_finds_candidates(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(Path("runs/x"))
    run.model.config = replace(run.model.config, pooling="Max")
    build(run)
    stage = searching(run).first_stage
    assert stage is not None
    words = EncodedCaptions(run.model, SENTENCES[:4])
    parts = stage._parts
    every = np.concatenate([stage.head.best_word_scores(part, words) for part in parts])  # (N, 4)
    among = np.arange(0, PHOTOS, 3)
    for rows in (None, among):
        for query, found_rows in enumerate(stage.search(words, 15, rows)):
            best = np.sort(every[slice(None) if rows is None else rows, query])[::-1][:15]
            np.testing.assert_allclose(every[found_rows, query], best, atol=1e-4)
            assert rows is None or set(found_rows) <= set(among)


def test_a_least_score(place: Path) -> None:
    searcher = searching(make_run(Path("runs/x")))
    third = searcher("a dog")[2].score
    assert len(searcher.photos(["a dog"], min_score=third)[0].hits) == 3
    assert searcher.similar("3.jpg", min_score=99).hits == ()


@pytest.mark.parametrize("change", ["added", "changed", "dropped"])
def test_vectors_of_another_store_are_those_of_a_fresh_index(place: Path, change: str) -> None:
    run = make_run(Path("runs/x"))
    build(run)
    names = {"added": ids(PHOTOS + 9), "changed": [*ids(PHOTOS - 1), "x.jpg"], "dropped": ids(PHOTOS - 9)}[change]
    shutil.rmtree("features/a")
    make_store(Path("features/a"), names, shard_size=16)
    followed = opened(run)  # as a query does, with the head that there is
    assert followed is not None
    after = {name: content for name, content in files(ROOT).items() if name.endswith(".vectors")}
    for path in ROOT.rglob("*.vectors"):
        path.unlink()
    opened(run)
    assert {name: content for name, content in files(ROOT).items() if name.endswith(".vectors")} == after
    assert build(run).photos == len(names)  # and measured again


def test_only_recalibrate_fits_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(Path("runs/x"))
    first = build(run)
    shutil.rmtree("features/a")
    make_store(Path("features/a"), [*ids(PHOTOS), *(f"new{n}.jpg" for n in range(60))], shard_size=16, seed=3)
    assert build(run).head == first.head
    again = build(run, recalibrate=True)
    assert again.head != first.head
    assert len(list(generation(run, ROOT).glob("*.head"))) == 1
    assert all(again.head in path.name for path in ROOT.rglob("*.vectors"))
    assert build(make_run(Path("runs/x"), seed=4)).head != again.head


def test_captions_that_are_named_are_measured_with(own_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the same photos were measured with others before."""
    for module in (search, index):
        monkeypatch.setattr(module, "EXACT_BELOW", 10)
    monkeypatch.setattr(first_stage, "MOST_CANDIDATES", 1)
    monkeypatch.setattr(first_stage, "LEAST_MEASURED", 2)
    run = ["index", "--run", "runs/t2i_mean", "--device", "cpu"]
    assert "7 held-out captions" in scan(*run).stdout
    Path("mine.tsv").write_text("".join(f"{number}.jpg\ta dog {'by a tree ' * number}\n" for number in range(8)))
    for _ in range(2):
        assert "4 held-out captions" in scan(*run, "--captions", "mine.tsv").stdout
    assert scan(*run, "--captions", "typo.tsv").exit_code == 2
    assert "4 held-out captions" in scan(*run).stdout


@pytest.mark.parametrize("change", [{"candidates": -1}, {"candidates": "5"}, {"photos": 0}, {"candidates": 2.5}])
def test_numbers_that_nothing_measured_are_not_used(place: Path, change: dict[str, object]) -> None:
    run = make_run(Path("runs/x"))
    build(run)
    state = generation(run, ROOT) / "head.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), **change}))
    assert opened(run) is None


@pytest.mark.parametrize("damage", ["head", "state", "vectors", "other model"])
def test_what_is_damaged_is_made_again_or_not_read(place: Path, damage: str) -> None:
    run = make_run(Path("runs/x"))
    build(run)
    whole = files(ROOT)
    if damage == "other model":
        assert opened(make_run(Path("runs/y"), seed=8)) is None
        return
    pattern = {"head": "*.head", "state": "head.json", "vectors": "*.vectors"}[damage]
    path = next(ROOT.rglob(pattern))
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage != "state" else b"{}")
    if damage == "vectors":
        assert opened(run) is not None
    else:
        assert opened(run) is None  # every photo is compared until the index is made again
        build(run)
    assert files(ROOT) == whole


def test_no_number_of_candidates_is_no_first_stage(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_stage, "MOST_CANDIDATES", PHOTOS // 2)
    run, notes = make_run(Path("runs/x")), []
    collection = open_stores(["features/a"])
    embeddings = store_embeddings(run, collection, ROOT)
    made = build_first_stage(run, collection, embeddings, ROOT, lambda: (SENTENCES, ""), report=notes.append)
    assert made.candidates == 0
    assert "every query is compared with every photo" in notes[0]
    assert searching(run).first_stage is None
    with pytest.raises(PipelineError, match="give --captions"):
        build_first_stage(run, collection, embeddings, ROOT, lambda: (SENTENCES[:3], ""), recalibrate=True)
    with pytest.raises(
        PipelineError, match="--address http://x: of milvus, and the engine is faiss; add --backend milvus"
    ):
        build(run, address="http://x")


def _survives(folder: Path, number: int) -> bool:
    """Kill a build at its n-th file operation, build again; whether there was such an operation."""
    os.chdir(folder)
    shutil.rmtree(ROOT, ignore_errors=True)
    first_stage.MOST_CANDIDATES = 1

    def whole() -> None:
        build(make_run(Path("runs/x")), folder / "index")

    def killed() -> None:
        with at_step(folder / "index", number, lambda: os._exit(9)):
            whole()

    code = forked(killed)
    assert code in (0, 9)
    assert forked(whole) == 0  # in a process of its own too: threads of torch and FAISS do not survive a fork
    return code == 9


def _every_step(folder: Path) -> tuple[list[int], list[dict[str, bytes]]]:
    steps, results, number = [], [], 1
    while _survives(folder, number):
        steps.append(number)
        results.append(files(folder / "index"))
        number += 6
    return steps, results


@pytest.mark.slow
def test_killed_at_any_file_operation_it_ends_with_the_same_bytes(place: Path) -> None:
    steps, results = in_clean_process(_every_step, place)
    assert len(steps) > 10
    assert all(result == results[0] for result in results)


def test_the_command_says_what_it_made(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(Path("runs/x"))
    Path("captions.txt").write_text("\n".join(f"1.jpg\t{text}" for text in SENTENCES))
    monkeypatch.setattr(index, "EXACT_BELOW", 50)
    monkeypatch.setattr(index, "open_search", lambda *args, **options: searching(run))
    made = index.run(index.IndexConfig(captions=("captions.txt",)), report=lambda line: None)
    assert made.measured is not None
    assert "held-out captions" in str(made)
    assert f"a query compares {made.measured.candidates:,} candidates exactly" in str(made)
    monkeypatch.setattr(index, "EXACT_BELOW", 50_000)
    assert "are all compared exactly" in str(index.run(index.IndexConfig(), report=lambda line: None))


def test_sentences_of_class_names_where_a_run_has_no_captions(place: Path) -> None:
    run = replace(make_run(Path("runs/x")), data={"captions": []})
    run.model.vocabulary.known = lambda text: True  # type: ignore[method-assign]
    texts, source = index.sentences(run, open_stores(["features/a"]))
    assert source == "sentences made of class names"
    assert len(texts) > 50
    assert all(text.startswith("a ") for text in texts)
    assert texts == index.sentences(run, open_stores(["features/a"]))[0]


def test_the_command_line_indexes_and_retrieves_exactly(inside: Path) -> None:
    indexed = scan("index", "--device", "cpu")
    assert indexed.exit_code == 0, indexed.output
    assert "20 photos" in indexed.output
    assert "next:\n  scan-pipeline retrieve" in indexed.output
    plain, exact = (scan("retrieve", "--query", "a dog", "--json", *how).stdout for how in ((), ("--exact",)))
    assert plain == exact
