"""Stored embeddings: the same bytes whatever happens, and never those of another shard or model."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from matcher.checkpoint import model_sha256, save_model
from matcher.collection import EncodedImages
from matcher.config import ModelConfig
from matcher.fit import BEST
from matcher.scan import SCAN
from matcher.vocabulary import SPECIAL, Vocabulary
from pipeline.errors import PipelineError
from pipeline.files import replacing
from pipeline.gallery import embeddings
from pipeline.gallery.embeddings import StoredEmbeddings, generation, store_embeddings
from pipeline.runs import TrainConfig, TrainedRun
from pipeline.search import Search
from pipeline.store.reader import StoreCollection, open_stores
from tests.faults import EVERY, at_step, forked, in_clean_process
from tests.stores import make_store

K, D, E = 3, 5, 8
IDS = [f"{number}.jpg" for number in range(7)]


def make_run(folder: Path, seed: int = 0) -> TrainedRun:
    torch.manual_seed(seed)
    model = SCAN(ModelConfig(feature_dim=D, embed_dim=E, word_dim=4), Vocabulary([*SPECIAL, "dog", "tree"])).eval()
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / BEST, model)
    return TrainedRun(folder, model, TrainConfig(), {"extraction": {}}, {}, model_sha256(folder / BEST))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a store of four shards."""
    monkeypatch.chdir(tmp_path)
    make_store(Path("features/a"), IDS)
    return tmp_path


def opened() -> StoreCollection:
    return open_stores(["features/a"])


def made(run: TrainedRun, root: Path = Path("index"), **options: object) -> StoredEmbeddings:
    return store_embeddings(run, opened(), root, report=lambda line: None, **options)  # type: ignore[arg-type]


def files(root: Path) -> dict[str, bytes]:
    """Every visible file below a folder."""
    found = sorted(path for path in root.rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def test_what_is_stored_is_what_the_model_makes(place: Path) -> None:
    run = make_run(Path("runs/x"))
    stored, wanted = made(run), EncodedImages(run.model, opened(), np.arange(7))
    assert stored.shape == wanted.shape == (7, K, E)
    torch.testing.assert_close(stored[1:6], wanted[1:6], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(stored.gather(np.array([6, 0, 6])), stored[0:7][[6, 0, 6]])
    assert len(files(Path("index"))) == 1 + 4


def test_scattered_photos_are_read_from_the_disk_without_what_lies_between(tmp_path: Path) -> None:
    path, rows = tmp_path / "part", np.arange(7, 8000, 500)
    np.random.default_rng(0).integers(0, 255, (8000, 8192), np.uint8).tofile(path)  # 66 MB

    def megabytes(ahead: bool) -> float:
        descriptor = os.open(path, os.O_RDONLY)
        os.fdatasync(descriptor)  # os.fsync does nothing in tests
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        regions = np.memmap(path, np.float16, "r", shape=(8000, 4, 1024))
        stored = StoredEmbeddings([regions[:4000], regions[4000:]], torch.device("cpu")).among(rows)
        before = _bytes_read()
        (stored.read_ahead() if ahead else stored).gather(np.arange(len(rows)))
        return (_bytes_read() - before) / 1e6

    usual = megabytes(ahead=False)
    if usual < 1:
        pytest.skip("the file is not on a disk")
    assert 8192 * len(rows) / 1e6 <= megabytes(ahead=True) < 1


def _bytes_read() -> int:
    """What this process has made a disk read."""
    return int(Path("/proc/self/io").read_text().split("read_bytes:")[1].split()[0])


def test_a_query_reads_no_feature_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(Path("runs/x"))
    first = Search(run, opened(), index=Path("index")).photos(["a dog"])
    monkeypatch.setattr(SCAN, "encode_images", lambda *_: pytest.fail("encodes a photo again"))
    monkeypatch.setattr("pipeline.search.best_boxes", lambda *_: ())  # which reads what it shows
    again = Search(run, opened(), index=Path("index")).photos(["a dog"])
    assert [(hit.image, hit.score) for hit in again[0].hits] == [(hit.image, hit.score) for hit in first[0].hits]


def test_a_folder_that_cannot_be_written_to_costs_a_note_and_no_answer(place: Path) -> None:
    run, notes = make_run(Path("runs/x")), []
    Path("index").write_text("a file")
    search = Search(run, opened(), index=Path("index"), report=notes.append)
    assert search("a dog") == Search(run, opened())("a dog")
    assert len(notes) == 1
    assert "embeddings of the photos are not stored: index" in notes[0]


@pytest.mark.parametrize("change", ["added", "changed", "dropped"])
def test_another_store_gives_what_a_fresh_index_gives(place: Path, change: str) -> None:
    run = make_run(Path("runs/x"))
    made(run)
    before = {name: os.stat(Path("index", name)).st_ino for name in files(Path("index"))}
    ids = {"added": [*IDS, "8.jpg"], "changed": [*IDS[:6], "other.jpg"], "dropped": IDS[:6]}[change]
    shutil.rmtree("features/a")
    make_store(Path("features/a"), ids)
    found = made(run)
    fresh = _fresh(run)
    assert files(Path("index")) == fresh
    kept = [name for name in fresh if before.get(name) == os.stat(Path("index", name)).st_ino]
    assert len(kept) >= 3  # shards that stayed are not encoded again
    wanted = EncodedImages(run.model, opened(), np.arange(len(ids)))
    torch.testing.assert_close(found[0 : len(ids)], wanted[0 : len(ids)], atol=1e-3, rtol=1e-3)


def _fresh(run: TrainedRun) -> dict[str, bytes]:
    """The files of an index made at once, in the same place."""
    Path("index").rename("before")
    made(run)
    found = files(Path("index"))
    shutil.rmtree("index")
    Path("before").rename("index")
    return found


def test_another_model_is_another_generation_and_old_readers_keep_theirs(place: Path) -> None:
    old = make_run(Path("runs/x"))
    reader = made(old)
    before = reader[0:7].clone()
    new = make_run(Path("runs/x"), seed=1)
    other = made(new)
    assert not torch.equal(other[0:7], before)
    assert not generation(old, Path("index")).exists()  # the run has no such model any more
    assert torch.equal(reader[0:7], before)
    made(make_run(Path("runs/y"), seed=2))
    assert generation(new, Path("index")).exists()


@pytest.mark.parametrize("damage", ["truncated", "another byte", "of another shard", "of another model", "empty"])
def test_a_damaged_part_is_made_again(place: Path, damage: str) -> None:
    run = make_run(Path("runs/x"))
    made(run)
    whole = files(Path("index"))
    first, second = sorted(Path("index").rglob("*.safetensors"))[:2]
    content = first.read_bytes()
    other = replace(run, sha256="0" * 64)
    first.unlink()  # never written in place: a reader may have it mapped
    if damage == "of another model":
        made(other, Path("elsewhere"))
        shutil.copy(next(Path("elsewhere").rglob(first.name)), first)
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        first.write_bytes(
            {
                "truncated": content[:-4],
                "another byte": flipped,
                "of another shard": second.read_bytes(),
                "empty": b"",
            }[damage]
        )
    made(run)
    assert files(Path("index")) == whole


def _survives(folder: Path, number: int) -> bool:
    """Kill a build at its n-th file operation, build again; whether there was such an operation."""
    shutil.rmtree(folder / "index", ignore_errors=True)

    os.chdir(folder)

    def whole() -> None:
        store_embeddings(make_run(Path("runs/x")), opened(), folder / "index")

    def killed() -> None:
        with at_step(folder / "index", number, lambda: os._exit(9)):
            whole()

    code = forked(killed)
    assert code in (0, 9)
    assert forked(whole) == 0  # in a process of its own too: threads of torch do not survive a fork
    return code == 9


def _killed_at_steps(folder: Path, every: int) -> tuple[int, list[dict[str, bytes]]]:
    results, number = [], 1
    while _survives(folder, number):
        results.append(files(folder / "index"))
        number += every
    return number, results


@EVERY
def test_killed_at_any_file_operation_it_ends_with_the_same_bytes(place: Path, every: int) -> None:
    operations, results = in_clean_process(_killed_at_steps, place, every)
    assert operations > 20
    store_embeddings(make_run(Path("runs/x")), opened(), place / "fresh", report=print)
    (wanted,) = {tuple(sorted(content for name, content in files(place / "fresh").items() if "run.json" not in name))}
    for found in results:
        assert tuple(sorted(content for name, content in found.items() if "run.json" not in name)) == wanted


def test_parts_that_another_process_removes_meanwhile_shift_no_photo(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the store open as it was before."""
    write = embeddings.write_part
    monkeypatch.setattr(embeddings, "write_part", lambda path, *what: (write(path, *what), path.unlink()))
    with pytest.raises(PipelineError, match="another process removed parts of it"):
        made(make_run(Path("runs/x")))
    notes: list[str] = []
    search = Search(make_run(Path("runs/x")), opened(), index=Path("index"), report=notes.append)
    assert search.embeddings.shape[0] == len(IDS)
    assert "are not stored" in notes[0]


def test_what_another_process_is_writing_stays(place: Path) -> None:
    run = make_run(Path("runs/x"))
    made(run)
    (folder,) = {path.parent for path in Path("index").rglob("*.safetensors")}
    with replacing(folder / f"{'0' * 64}.safetensors") as file:
        file.write(b"half of it")
        made(run)
        assert Path(file.name).exists()
