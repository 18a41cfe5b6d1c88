"""Whatever JSON stands in a store's files, every reader answers or raises a PipelineError."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.extract import run
from pipeline.inputs.sources import list_photos
from pipeline.store.inspect import inspect_store
from pipeline.store.marks import SEAL, seal
from pipeline.store.reader import open_stores
from pipeline.store.repair import repair_store
from pipeline.store.update import update_plan
from tests.faults import QuickDetector, contents, small_config
from tests.photos import write_photos

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["..", "\0", "/", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
FILES = ["manifest.json", "shard-00000.json", "images.jsonl"]


def read(folder: Path) -> None:
    collection = open_stores([folder])
    for row in range(len(collection)):
        assert len(collection.regions(row)) == collection.num_regions
        collection.image_path(row)
        collection.names_of(row)
    collection.gather(np.arange(len(collection)))


READERS: list[Callable[[Path], Any]] = [
    read,
    lambda folder: str(inspect_store(folder, progress=False)),
    lambda folder: update_plan(folder, list_photos([folder.parent / "photos"]), 4),
    lambda folder: str(repair_store(folder, progress=False)),
]


def changed(content: dict[str, Any], path: list[Any], value: Any) -> dict[str, Any]:
    """The content with a value in the place of another: one key deep or, of a list or an object, two."""
    key, rest = path[0], path[1:]
    if rest and isinstance(content[key], dict | list) and content[key]:
        inner = content[key]
        return {**content, key: [value, *inner[1:]] if isinstance(inner, list) else {**inner, next(iter(inner)): value}}
    return {**content, key: value}


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=ANY, data=st.data())
def test_any_value_in_any_place(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    value: Any,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    write_photos(folder / "photos", 3)
    (folder / "photos/bad.jpg").write_bytes(b"no photo")
    store = run(small_config(folder / "photos", folder / "store"), extractor=QuickDetector(), progress=False).path
    whole = contents(store)
    content = json.loads((store / name).read_text().splitlines()[0])
    path = [data.draw(st.sampled_from(sorted(content))), *data.draw(st.sampled_from([[], [0]]))]
    content = changed(content, path, value)
    if name.startswith("shard"):
        content[SEAL] = seal(name, content)
    damaged = {**whole, name: b"\n".join([json.dumps(content).encode(), *whole[name].split(b"\n")[1:]])}
    for reader in READERS:
        for file, data_of_file in damaged.items():
            (store / file).write_bytes(data_of_file)
        with suppress(PipelineError):
            reader(store)
