"""The same photos as a folder, as tars and as parquet: the same tensors and captions, whatever is killed or damaged."""

import dataclasses
import io
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq

from detector import RegionExtractor
from pipeline.errors import PipelineError
from pipeline.extract import run
from pipeline.extraction.job import ExtractConfig
from pipeline.inputs import containers, decode
from pipeline.inputs.dataset import load_dataset
from pipeline.inputs.sources import captions_of, list_photos, read_photo
from pipeline.store.inspect import inspect_store
from pipeline.store.reader import Store, open_store
from tests.photos import write_photos
from tests.world import SMALL_TRAINING, scan

COUNT = 12
KINDS = ("tars", "parquet")


class Killed(BaseException):
    """Nothing catches it."""


@pytest.fixture(scope="module")
def extractor(small_weights: Path) -> RegionExtractor:
    return RegionExtractor.from_weights(small_weights, num_regions=4, device="cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """photos/ with captions.tsv beside it; tars/ and parquet/ with the same photos and captions inside."""
    write_photos(tmp_path / "photos", COUNT, names="COCO_val2014_{:012}.jpg")
    names = sorted(path.name for path in (tmp_path / "photos").iterdir())
    (tmp_path / "captions.tsv").write_text("".join(f"{name}\t{text}\n" for name in names for text in texts_of(name)))
    write_tar(tmp_path / "tars/00000.tar", tmp_path / "photos", names[:7])
    write_tar(tmp_path / "tars/00001.tar", tmp_path / "photos", names[7:], as_json=True)
    write_parquet(tmp_path / "parquet/test-00000-of-00002.parquet", tmp_path / "photos", names[:7])
    write_parquet(tmp_path / "parquet/test-00001-of-00002.parquet", tmp_path / "photos", names[7:])
    return tmp_path


def texts_of(name: str) -> list[str]:
    return [f"a thing called {name[-6:-4]}", f"the same, {name[-6:-4]}"]


def write_tar(path: Path, photos: Path, names: Sequence[str], *, as_json: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.add(photos / name, name)
            texts, number = texts_of(name), int(name[-16:-4])
            sidecar = {"captions": texts, "cocoid": number, "split": "test", "status": "success"}
            files = {".json": json.dumps(sidecar)} if as_json else {".json": json.dumps({**sidecar, "captions": texts})}
            for suffix, text in files.items():
                member = tarfile.TarInfo(Path(name).stem + suffix)
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))


def write_parquet(path: Path, photos: Path, names: Sequence[str], **changes: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "image": [{"bytes": (photos / name).read_bytes(), "path": name} for name in names],
        "caption": [texts_of(name) for name in names],
        "cocoid": [int(name[-16:-4]) for name in names],
    }
    pq.write_table(pa.table({**columns, **changes}), path, row_group_size=3)


def config(place: Path, kind: str, **changes: Any) -> ExtractConfig:
    settings = ExtractConfig((str(place / kind),), str(place / "stores" / kind), workers=0, batch_size=3, shard_size=4)
    return dataclasses.replace(settings, **changes)


def extract(settings: ExtractConfig, extractor: Any) -> Store:
    return run(settings, extractor=extractor, progress=False)


def tensors(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.path.glob("*.safetensors"))}


def contents(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.path.glob("[!.]*"))}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tensors_and_captions_as_from_a_folder(place: Path, extractor: RegionExtractor, kind: str) -> None:
    folder, found = extract(config(place, "photos"), extractor), extract(config(place, kind), extractor)
    assert tensors(found) == tensors(folder)
    assert list(found) == list(folder)
    assert inspect_store(found.path, progress=False).ok
    ours, theirs = load_dataset([found.path]), load_dataset([folder.path], [place / "captions.tsv"])
    (split,), (expected,) = ours.splits.values(), theirs.splits.values()
    assert (split.images.captions, split.store_ids) == (expected.images.captions, expected.store_ids)
    assert split.image_ids == list(range(COUNT))  # COCO's
    assert split.name == "test"  # of the tar's JSON, of the parquet file's name
    for row, image_id in enumerate(found):
        assert read_photo(found.image_place(row)) == (place / "photos" / image_id).read_bytes()
        assert found.image_path(row) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_continued_ends_with_the_same_bytes(
    place: Path, extractor: RegionExtractor, kind: str, workers: int
) -> None:
    class Fragile:
        calls = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(extractor, name)

        def launch(self, images: Any) -> Any:
            self.calls += 1
            if self.calls == 4:
                raise Killed
            return extractor.launch(images)

    expected = contents(extract(config(place, kind, output=str(place / "stores/undisturbed")), extractor))
    settings = config(place, kind, workers=workers)
    with pytest.raises(Killed):
        extract(settings, Fragile())
    assert 0 < len(open_store(settings.output)) < COUNT
    assert contents(extract(settings, extractor)) == expected
    part = dataclasses.replace(settings, output=str(place / "stores/shared"))
    for share in ("1/2", "0/2"):
        store = extract(dataclasses.replace(part, share=share), extractor)
    assert contents(store) == expected


def failures(store: Store) -> dict[str, str]:
    rows = map(json.loads, (store.path / "failures.jsonl").read_text().splitlines())
    return {row["image_id"]: row["reason"] for row in rows}


def test_a_truncated_tar_keeps_what_it_holds(place: Path, extractor: RegionExtractor) -> None:
    path = place / "tars/00000.tar"
    whole, (offset, size) = path.read_bytes(), containers.index_of(str(path)).photos["COCO_val2014_000000000004.jpg"]
    path.write_bytes(whole[: offset + size - 5])
    store = extract(config(place, "tars"), extractor)
    assert len(store) == 4 + 5
    assert failures(store) == {
        "COCO_val2014_000000000004.jpg": "truncated: 00000.tar ends within it",
        "00000.tar": "a damaged or truncated tar (unexpected end of data): what follows its 5 photos is lost",
    }
    path.write_bytes(whole)  # fetched again
    store = extract(config(place, "tars"), extractor)
    assert (len(store), failures(store)) == (COUNT, {})


def test_a_damaged_row_group_is_failure_rows(place: Path, extractor: RegionExtractor) -> None:
    path = place / "parquet/test-00000-of-00002.parquet"
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    (place / "parquet/test-00001-of-00002.parquet").write_bytes(b"PAR1 and no more")
    store = extract(config(place, "parquet"), extractor)
    assert len(store) == 4
    found = failures(store)
    assert {name: reason.split(" (")[0] for name, reason in found.items()} == {
        "COCO_val2014_000000000003.jpg": "row group 1 of test-00000-of-00002.parquet is damaged",
        "COCO_val2014_000000000004.jpg": "row group 1 of test-00000-of-00002.parquet is damaged",
        "COCO_val2014_000000000005.jpg": "row group 1 of test-00000-of-00002.parquet is damaged",
        "test-00001-of-00002.parquet": "a damaged or truncated parquet file",
    }


def test_a_container_that_goes_away_stops_the_run_and_nothing_is_lost(
    place: Path, extractor: RegionExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = decode._read_ahead

    def steal(photo: str) -> Any:  # when the first photo is read, of the first container
        (place / "tars/00001.tar").rename(place / "away.tar") if (place / "tars/00001.tar").exists() else None
        return read(photo)

    expected = contents(
        extract(config(place, "tars", batch_size=1, output=str(place / "stores/undisturbed")), extractor)
    )
    settings = config(place, "tars", batch_size=1)
    with monkeypatch.context() as patch:
        patch.setattr(decode, "_read_ahead", steal)
        with pytest.raises(
            PipelineError, match=r"00001.tar: No such file .*put it back, and run the same command again"
        ):
            extract(settings, extractor)
    assert len(open_store(settings.output)) in (4, 8)  # full shards of the first container
    (place / "away.tar").rename(place / "tars/00001.tar")
    assert contents(extract(settings, extractor)) == expected


def test_photos_that_change_in_a_tar_are_extracted_again(place: Path, extractor: RegionExtractor) -> None:
    extract(config(place, "tars"), extractor)
    names = sorted(path.name for path in (place / "photos").iterdir())
    write_photos(place / "photos", 1, names=names[8], shapes=[(50, 50)])
    write_tar(place / "tars/00001.tar", place / "photos", names[8:])  # one changed, one vanished
    store = extract(config(place, "tars"), extractor)
    assert len(store) == COUNT - 1
    assert store[names[8]].image_size == (50, 50)
    fresh = extract(config(place, "tars", output=str(place / "fresh")), extractor)
    assert all(store[name].features.tobytes() == fresh[name].features.tobytes() for name in fresh)


def test_names_of_files_and_stores(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    by_braces = list_photos(["tars/{00000..00001}.tar"])
    assert [photo.path for photo in by_braces] == [photo.path for photo in list_photos(["tars"])]
    assert len(list_photos(["tars/00000.tar"])) == 7
    assert len(list_photos(["parquet/test-*.parquet"])) == COUNT
    several = list_photos(["tars/00000.tar", "parquet/test-00001-of-00002.parquet"])
    assert {photo.image_id.split("/")[0] for photo in several} == {"00000", "test"}
    for wrong, message in {
        "tars/{00000..00003}.tar": "00002.tar: No such file",
        "tars/x*.tar": "matches no file",
        "none.tar": "none.tar: No such file",
    }.items():
        with pytest.raises(PipelineError, match=message):
            list_photos([wrong])
    (place / "tars/00002.tar").write_bytes((place / "tars/00000.tar").read_bytes())
    with pytest.raises(PipelineError, match=r"two files both hold 'COCO_val2014_000000000000\.jpg'"):
        list_photos(["tars"])


def test_files_beside_containers_and_links_in_them_are_counted(place: Path) -> None:
    (place / "mixed").mkdir()
    (place / "photos/a::b.jpg").write_bytes(next((place / "photos").iterdir()).read_bytes())
    (place / "photos/b.jpg").write_bytes(b"another")
    for name in ("x.parquet", "notes.txt"):
        (place / "mixed" / name).touch()
    with tarfile.open(place / "mixed/a.tar", "w") as tar:
        tar.add(place / "photos/b.jpg", "b.jpg")
        link = tarfile.TarInfo("c.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "b.jpg"
        tar.addfile(link)
    skipped = Counter[str]()
    assert [photo.image_id for photo in list_photos([place / "mixed"], skipped=skipped)] == ["b.jpg"]
    assert skipped == {".parquet": 1, ".txt": 1, ".jpg link": 1}
    assert {"a::b.jpg", "b.jpg"} < {photo.image_id for photo in list_photos([place / "photos"])}  # of a folder


def test_columns_of_captions_that_are_not_there_are_refused(place: Path, extractor: RegionExtractor) -> None:
    extract(config(place, "parquet"), extractor)
    captions = place / "stores/parquet/captions_of_photos.json"
    before = captions.read_bytes()
    for kind in ("tars", "photos"):
        with pytest.raises(
            PipelineError, match=r"caption_columns=captoin: no caption is in these of .*; expected columns"
        ):
            extract(config(place, kind, caption_columns=("captoin",)), extractor)
    assert captions.read_bytes() == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_containers_give_photos_or_a_reason(place: Path, kind: str, data: st.DataObject) -> None:
    original = (place / {"tars": "tars/00001.tar", "parquet": "parquet/test-00000-of-00002.parquet"}[kind]).read_bytes()
    content = bytearray(original)
    headers = range(0, len(content), 512) if kind == "tars" else range(len(content) - 2000, len(content), 512)
    for start in data.draw(st.lists(st.sampled_from(headers), min_size=1, max_size=5)):
        place_of_byte = min(start + data.draw(st.integers(0, 511)), len(content) - 1)
        content[place_of_byte] = data.draw(st.integers(0, 255))
    path = place / f"damaged{'.tar' if kind == 'tars' else '.parquet'}"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content)
    with suppress(PipelineError):
        for photo in list_photos([path]):
            with suppress(PipelineError):
                read_photo(place / photo.path)
        captions_of([str(path)], ())


@pytest.mark.slow
def test_a_cluster_reads_tars(place: Path, small_weights: Path) -> None:
    pytest.importorskip("ray")
    asked = config(place, "tars", weights=str(small_weights), num_regions=4, device="cpu")
    expected = contents(run(dataclasses.replace(asked, output=str(place / "stores/alone")), progress=False))
    on_ray = dataclasses.replace(asked, engine="ray", ray_address="local", ray_workers=2)
    assert contents(run(on_ray, progress=False)) == expected


def test_a_compressed_tar_is_refused(place: Path) -> None:
    with tarfile.open(place / "z.tar", "w:gz") as archive:
        archive.add(place / "photos")
    with pytest.raises(PipelineError, match=r"a compressed tar; .*unpack it once: gunzip"):
        list_photos([place / "z.tar"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_shows_photos_and_finds_captions(
    place: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As typed: extract, train, evaluate, retrieve, explain, and the app, with photos that have no files of their own."""
    from starlette.testclient import TestClient

    from pipeline.service.config import ServeConfig
    from pipeline.service.http import Server
    from pipeline.service.local import LocalService
    from pipeline.service.metrics import Metrics

    monkeypatch.chdir(place)
    (place / "captions.tsv").unlink()
    extracted = ["extract", "--images", kind, "--weights", str(small_weights), "--num-regions", "4", "--device", "cpu"]
    name = "COCO_val2014_000000000003.jpg"
    container = {"tars": "tars/00000.tar", "parquet": "parquet/test-00000-of-00002.parquet"}[kind]
    for command in (
        extracted,
        ["train", *SMALL_TRAINING, "--run", "runs/one"],
        ["evaluate", "--run", "runs/one", "--split", "all", "--html", "page.html"],
        ["retrieve", "--query", "a thing called 03", "--picture", "found.png", "--html", "found.html"],
        ["retrieve", "--image", f"{container}::{name}"],
        ["explain", "--image", name, "--caption", "a thing", "--output", "why.html"],
    ):
        said = scan(*command)
        assert said.exit_code == 0, said.output
    assert "data:image/jpeg" in (place / "found.html").read_text()
    metrics = Metrics()
    service = LocalService(ServeConfig(run="runs/one", device="cpu", watch=0), metrics, say=lambda _: None)
    library = service.generation.library
    client = TestClient(Server(service, metrics).app())
    key = library.id(service.generation.collection.row(name))
    assert client.get(f"/v1/photos/{key}/image").status_code == 200
    original = client.get(f"/v1/photos/{key}/original")
    assert original.content == (place / "photos" / name).read_bytes()
    assert original.headers["content-type"] == "image/jpeg"
