"""Of whole datasets every photo has its captions and its split, or an error or a note says what differs."""

import hashlib
import json
import os
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError, UnreadableImage
from pipeline.inputs.dataset import Dataset, load_dataset
from pipeline.inputs.sources import captions_of, describe_skipped, list_photos, read_photo
from pipeline.inputs.split_words import split_of_name
from pipeline.store.format import CAPTIONS
from pipeline.store.reader import Store
from pipeline.store.roots import place_of, titled
from tests import drawn_datasets as drawn
from tests.drawn_datasets import SPLITS, Fields, Photo
from tests.packed_datasets import PACKINGS, packed
from tests.stores import make_store

EXAMPLES = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)  # fmt: skip
MANY = settings(EXAMPLES, max_examples=1000)
LOST = r"in none of the stores|skipped .*(metadata|captions_\w+)[.]|taken for a header|of photos that could not be read|captions of several images"  # what notes say of captions
REPEATED = "repeat another one of their image"
TAKEN = "taken for|taken from another folder|named without folders|^images in .*: "


@dataclass(frozen=True)
class Truth:
    """What can be known of a photo that a store has."""

    photo: Photo
    split: str
    word: str  # for its split; an unknown one is a split of its name

    def wrong(self, split: str, texts: Sequence[str], notes: Sequence[str], columns: Sequence[str]) -> str:
        """What was read and is neither true nor said; "" if nothing."""

        def is_said(pattern: str) -> bool:
            return any(re.search(pattern, note) for note in notes)

        expected, got = Counter(map(drawn.in_one_line, self.photo.captions)), Counter(texts)
        if got == expected and list(texts) != list(map(drawn.in_one_line, self.photo.captions)):
            return f"order {texts}"
        if (lost := expected - got) and not is_said(LOST):
            return f"lost {list(lost)}"
        if (more := got - expected) and not is_said(TAKEN) and not (set(more) <= set(expected) and is_said(REPEATED)):
            return f"more {list(more)}"
        is_own = split not in SPLITS and (self.split not in SPLITS or split == self.word.strip().lower() != "")
        is_unread = any(is_said(rf"(not read|skipped).*\b{re.escape(column)}\b") for column in columns)
        if got & expected and split not in (self.split, self.photo.split) and not is_own and not is_unread:
            return f"split {split!r} in place of {self.split!r}"
        return ""


def compare(truths: Sequence[Truth], dataset: Dataset, notes: Sequence[str], fields: Fields, *shown: object) -> None:
    """`truths` (N,) are those of the rows of the stores."""
    event("read")
    found: dict[int, tuple[str, list[str]]] = {}
    for name, split in dataset.splits.items():
        owners, rows = split.images.image_of_caption.tolist(), split.images.rows.tolist()
        assert not found.keys() & set(rows)
        found |= {row: (name, []) for row in rows}
        for text, owner in zip(split.images.captions, owners, strict=True):
            found[rows[owner]][1].append(text)
    for row, truth in enumerate(truths):
        wrong = truth.wrong(*found.get(row, ("", [])), notes, fields.columns)
        assert not wrong, "\n".join(map(str, [f"{wrong}: {truth}", "notes:", *notes, *shown]))


def truth_of(photo: Photo, fields: Fields, of_name: bool) -> Truth:
    """`of_name`: the name of a file or folder tells the split where nothing else does."""
    beside = fields.beside[photo.path]
    is_named = of_name and not fields.columns and photo.split in SPLITS
    return Truth(photo, photo.split if is_named else beside.known, str(beside.word))


SMALL: dict[str, Any] = {"num_regions": 1, "feature_dim": 1, "shard_size": 99, "object_names": ["a"], "attribute_names": ["b"]}  # fmt: skip


def store_of(place: Path, name: str, photos: Sequence[Photo], tops: Sequence[str], below: str = "") -> Store:
    """The photos of some folders in data/, as the store of one folder or of several."""
    of_state: dict[str, list[Photo]] = {"here": [], "failed": [], "gone": []}
    for one in sorted(photos, key=lambda one: one.path):
        if one.path.startswith(tuple(tops)):
            of_state[one.state].append(one)
    ids, failed = ([one.path.removeprefix(below) for one in of_state[state]] for state in ("here", "failed"))
    roots = [next(n for n, top in enumerate(tops) if one.path.startswith(top)) for one in of_state["here"]]
    folders = [str(place / "data" / top) for top in tops]
    return make_store(place / "features" / name, ids, failed=failed, roots=roots, image_roots=folders, **SMALL)


def stores_of(kind: str, place: Path, photos: Sequence[Photo], name: str) -> list[Store]:
    tops = sorted({one.path.partition("/")[0] + "/" for one in photos if one.state == "here"})
    if kind == "one for each folder":
        return [store_of(place, top[:-1], photos, [top], below=top) for top in tops]
    if kind == "one of several folders":  # named after the last
        return [store_of(place, tops[-1][:-1], photos, tops)]
    return [store_of(place, name, photos, [""])]


def refused(error: PipelineError, place: str) -> None:
    event(re.sub(r"\d+|'.*?'|/\S+", "…", str(error).replace(place, ""))[:90])


@EXAMPLES
@given(data=st.data())
def test_photos_in_folders(data: st.DataObject) -> None:
    check_folders(data)


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_photos_in_folders_at_length(data: st.DataObject) -> None:
    check_folders(data)


def check_folders(data: st.DataObject) -> None:
    photos = data.draw(drawn.photos())
    style = data.draw(drawn.FORMATS)
    fields = data.draw(drawn.fields(photos)) if style.has_fields else drawn.no_fields(photos)
    entries = data.draw(drawn.entries(photos, fields.beside))
    is_class = [one.path.startswith(("dog/", "cat/", "train/")) and not drawn.is_in_its_folder(one) for one in photos]
    of_folders = all("/" in one.path for one in photos) and data.draw(st.booleans())
    are_beside = of_folders and style.suffix == ".csv" and data.draw(st.booleans())
    are_named = of_folders and not are_beside and not any(is_class)  # after the folders of photos
    files = drawn.files_of_folders(entries, are_named) if are_beside or are_named else data.draw(drawn.files(entries))
    named = "train" if drawn.is_of_training(fields) else "data"
    stores = data.draw(st.sampled_from(["one", "one for each folder", "one of several folders"]))
    if any(is_class) or not all("/" in one.path for one in photos):
        stores = "one"  # folders are not what was extracted
    is_told = len({one.split for one in photos if one.state == "here" and drawn.is_in_its_folder(one)} & {*SPLITS}) > 1
    with tempfile.TemporaryDirectory() as place:
        for one in photos:
            (path := Path(place, "data", one.path)).parent.mkdir(parents=True, exist_ok=True)
            if one.state != "gone":
                path.write_bytes(one.content)
        found = stores_of(stores, Path(place), photos, named)
        places = ["data"] if are_beside else ["data", "data/annotations"] if are_named else [".", "data", "annotations"]
        folder = Path(place, data.draw(st.sampled_from(places)))
        folder.mkdir(exist_ok=True)
        styles = {name: data.draw(drawn.FORMATS) if name == "more" else style for name in files}
        paths = [folder / f"{name}{styles[name].suffix}" for name in files]
        for path, (name, own) in zip(paths, files.items(), strict=True):
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(drawn.written(styles[name], own))
        is_found = stores == "one" and (are_beside or files.keys() == {"captions"}) and folder.name != "annotations"
        is_found |= all(split_of_name(path.stem) for path in paths) if stores == "one" else are_named
        asked = [] if is_found else paths
        try:
            dataset = load_dataset([store.path for store in found], asked)
        except PipelineError as error:
            refused(error, place)
            return
        of_path = {one.path: one for one in photos}
        below = [f"{store.path.name}/" if stores == "one for each folder" else "" for store in found]
        own = [of_path[top + image_id] for top, store in zip(below, found, strict=True) for image_id in store.image_ids]
        by_folder = is_told or stores != "one"
        truths = [
            truth_of(
                one,
                fields,
                drawn.is_in_its_folder(one)
                if are_named
                else (by_folder and drawn.is_in_its_folder(one)) or not (are_beside or "captions" in files),
            )
            for one in own
        ]
        compare(truths, dataset, dataset.notes, fields, *map(Path.read_bytes, paths))
        if style.kind in ("token", "results") and style.rows != "twice" and "more" not in files and stores == "one":
            check_numbers(entries, dataset, [entry.photo.path for entry in entries])


def check_numbers(entries: Sequence[drawn.Entry], dataset: Dataset, image_ids: Sequence[str]) -> None:
    """Captions have the numbers that their file gives them; `image_ids` (N,) of the entries' photos."""
    numbers: dict[tuple[str, str], list[str]] = defaultdict(list)  # of equal texts, several
    for image_id, entry in zip(image_ids, entries, strict=True):
        for number, text in enumerate(entry.texts):
            numbers[image_id, drawn.in_one_line(text)].append(f"#{number}")
    for split in dataset.splits.values():
        owners = split.images.image_of_caption.tolist()
        for text, owner, caption_id in zip(split.images.captions, owners, split.caption_ids, strict=True):
            wanted = numbers.get((split.store_ids[owner], text))
            assert wanted is None or str(caption_id).endswith(tuple(wanted)), (text, caption_id)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def extracted(place: Path, roots: Sequence[str], skipped: Counter[str]) -> tuple[Store, list[bytes]]:
    """The store that extract makes of containers, and the bytes of the photos in its rows."""
    listed = list_photos(roots, skipped=skipped)
    captions = captions_of(roots, (), skipped=skipped)
    contents = {photo.image_id: content_of(place_of(roots[photo.root], photo.path)) for photo in listed}
    here = [photo for photo in listed if contents[photo.image_id]]
    checksums = {photo.image_id: hashlib.sha256(contents[photo.image_id]).hexdigest() for photo in here}
    store = make_store(
        place / "features" / os.path.basename(titled(roots[-1])), list(checksums), photo_sha256=checksums,
        failed=[name for name, content in contents.items() if not content], roots=[photo.root for photo in here],
        image_roots=roots, **SMALL,
    )  # fmt: skip
    (store.path / CAPTIONS).write_text(json.dumps({"images": captions}))
    return store, [contents[photo.image_id] for photo in here]


def content_of(place: str) -> bytes:
    """The bytes of a photo; none where it cannot be read."""
    try:
        return read_photo(place)
    except UnreadableImage:
        return b""


@EXAMPLES
@given(data=st.data())
def test_photos_in_containers(data: st.DataObject) -> None:
    check_containers(data)


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_photos_in_containers_at_length(data: st.DataObject) -> None:
    check_containers(data)


def check_containers(data: st.DataObject) -> None:
    photos = [one for one in data.draw(drawn.photos()) if one.state != "gone"]
    style = data.draw(PACKINGS)
    if style.rows == "columns":  # of which one may repeat another, as caption does caption_0
        photos = [replace(one, captions=tuple(dict.fromkeys(one.captions))) for one in photos]
    fields = data.draw(drawn.fields(photos)) if style.has_fields else drawn.no_fields(photos)
    named = "train" if drawn.is_of_training(fields) else "mine"
    with tempfile.TemporaryDirectory() as place:
        patterns = packed(style, photos, fields.beside, Path(place, named))
        roots = patterns if data.draw(st.booleans()) else [f"{place}/{named}"]
        truths = {one.content: truth_of(one, fields, style.shards != "any") for one in photos if one.state == "here"}
        skipped: Counter[str] = Counter()
        try:
            store, contents = extracted(Path(place), roots, skipped)
            assert set(contents) == truths.keys()
            dataset = load_dataset([store.path])
        except PipelineError as error:
            refused(error, place)
            return
        notes = [*dataset.notes, describe_skipped(skipped)]
        if (
            style.kind == "parquet"
            and style.rows == "caption"
            and (not style.naming or len(set(contents)) < len(contents))
        ):  # each caption has a photo of its own, as without names, or where names are of several photos
            assert any("have the content of another one" in note for note in notes) or len(set(contents)) == len(
                contents
            )
        else:
            compare([truths[content] for content in contents], dataset, notes, fields, style, fields.beside)
