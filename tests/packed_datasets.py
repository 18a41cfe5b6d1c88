"""Drawn datasets in tars and parquet files."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.drawn_datasets import FILE_OF_SPLIT, Beside, Photo, in_one_line


@dataclass(frozen=True)
class Packing:
    """How photos are packed into containers."""

    kind: str  # "parquet" or "tar"
    shards: str  # what shares a file: "split", "folder" (a folder for each split), or "any"
    count: int  # files, of each split or in all
    rows: str  # of parquet: "photo" (a list of captions), "columns" (caption_0, …), or "caption" (one a row)
    naming: str  # of parquet: "path" in the struct, "base" there, "filename" beside the bytes, or ""
    sidecar: str  # of tars: ".txt", ".json" or both
    caption: str

    @property
    def has_fields(self) -> bool:
        return self.kind == "parquet" or self.sidecar != ".txt"


PACKINGS = st.builds(
    Packing,
    st.sampled_from(["parquet", "parquet", "tar"]),
    st.sampled_from(["split", "folder", "any", "any"]),
    st.integers(1, 3),
    st.sampled_from(["photo", "columns", "caption"]),
    st.sampled_from(["path", "base", "filename", ""]),
    st.sampled_from([".txt", ".json", "both"]),
    st.sampled_from(["caption", "captions", "sentences", "text"]),
)


def packed(style: Packing, some: Sequence[Photo], cells: Mapping[str, Beside], folder: Path) -> list[str]:
    """Write containers below a folder; `cells` stand beside each photo, by its path. Returns the patterns of their names."""
    patterns = {}
    parts: dict[str, list[Photo]] = {}
    for one in some:
        parts.setdefault("data" if style.shards == "any" else FILE_OF_SPLIT[one.split], []).append(one)
    for part, members in parts.items():
        count = min(style.count, len(members))
        for number in range(count):
            if style.kind == "tar":
                name = f"{part}/{number:05}.tar" if style.shards != "any" else f"{number:05}.tar"
            else:
                name = (
                    f"{part}/{number:04}.parquet"
                    if style.shards == "folder"
                    else f"{part}-{number:05}-of-{count:05}.parquet"
                )
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            patterns[part] = (
                f"{path.parent}/{'*' if path.parent != folder else f'{part}-*' if style.kind == 'parquet' else '*'}{path.suffix}"
            )
            own = members[number::count]
            if style.kind == "tar":
                _tar(style, own, cells, path)
            else:
                _parquet(style, own, cells, path)
    return list(patterns.values())


def _parquet(style: Packing, some: Sequence[Photo], cells: Mapping[str, Beside], path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows: list[dict[str, Any]] = []
    for one in some:
        content: Any = None if one.state == "failed" else one.content
        base = one.path.rsplit("/", 1)[-1]
        named = {"path": one.path, "base": base}.get(style.naming)
        row = {"image": {"bytes": content, "path": named}} | dict(cells[one.path].cells)
        row |= {"filename": one.path} if style.naming == "filename" else {}
        if style.rows == "photo":
            rows.append(row | {style.caption: list(one.captions)})
        elif style.rows == "columns":
            texts = dict.fromkeys((f"caption_{n}" for n in range(3)), "") | {
                f"caption_{n}": text for n, text in enumerate(one.captions)
            }
            rows.append(row | texts)
        else:
            rows += [row | {style.caption: text} for text in one.captions or ("",)]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    images = pyarrow.array(columns.pop("image"), kind)
    parquet.write_table(pyarrow.table({"image": images, **columns}), path)


def _tar(style: Packing, some: Sequence[Photo], cells: Mapping[str, Beside], path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for one in some:
            folder, _, base = one.path.rpartition("/")
            stem, _, suffix = base.rpartition(".")
            key = f"{folder}/{stem}" if folder else stem
            text, said = "\n".join(map(in_one_line, one.captions)), dict(cells[one.path].cells)
            members = {f"{key}.{suffix}": b"" if one.state == "failed" else one.content}
            if style.sidecar != ".json":
                members[f"{key}.txt"] = text.encode()
            if style.sidecar != ".txt":
                captions = {style.caption: list(one.captions)} if style.sidecar == ".json" else {}
                members[f"{key}.json"] = json.dumps({**captions, **said}).encode()
            for name, own in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(own)
                archive.addfile(member, io.BytesIO(own))
