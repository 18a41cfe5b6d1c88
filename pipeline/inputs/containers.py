"""Photos inside tar files (webdataset's names) and parquet files (as the hub serves datasets), with their captions.

README.md beside this file says what names a photo and its captions. A container is read once for its index: where each photo
lies, and the captions of each. The index of a damaged container has the photos that can still be read, and the fault.
"""

import functools
import hashlib
import json
import os
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import first_line
from detector.errors import DetectorError
from detector.hub import cache_root
from pipeline.errors import PipelineError, UnreadableImage
from pipeline.files import replacing
from pipeline.inputs.packed_captions import (
    FILE_NAMES,
    Captions,
    captions_of_records,
    infix_of,
    is_text,
    key_of,
    record_of,
    text_of,
)
from pipeline.inputs.split_words import ORDINARY
from pipeline.inputs.storage import SUFFIXES, open_file, read_range, shadow_of, status
from pipeline.store.format import stays_inside
from pipeline.store.roots import is_remote

VERSION = 13  # of the index: what another version found in a container is not read
INDEXES = 64  # of containers that are kept in memory
LONGEST_END = 1 << 16  # bytes of zeros that end a tar; 10,240 by default
LONGEST_TEXT = 1 << 20  # bytes of a .txt or .json
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # how gzip, bzip2, xz and zstd begin
State = tuple[int, ...]  # as of `_state`
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")


@dataclass
class Index:
    """What a container holds."""

    photos: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> offset and size, or row group and row
    captions: Captions = field(default_factory=Captions)
    fault: str = ""  # why the container may hold more than that
    skipped: dict[str, int] = field(default_factory=dict)  # other members by suffix
    columns: tuple[str, ...] | None = ()  # that the user named as captions


def index_of(place: str, columns: tuple[str, ...] | None = None) -> Index:
    """The index of a container, from the cache where the container did not change.

    `columns` hold the captions; (): those of known names; None: any, as no captions are wanted.

    Raises:
        PipelineError: not there, a compressed tar, or a parquet file without images.
    """
    return _index(place, _state(place), columns)


def read_member(place: str, name: str, ahead: int = 0) -> bytes:
    """The bytes of a photo in a container; `ahead` bytes are fetched with it from a tar behind a URL.

    Raises:
        UnreadableImage: not in it, truncated or damaged.
        PipelineError: the container is gone.
    """
    found = index_of(place)
    if name not in found.photos:
        raise UnreadableImage(f"{name!r} is not in {os.path.basename(place)}")
    if place.endswith(".parquet"):
        content = _read_row(place, *found.photos[name])
        if content is None:
            raise UnreadableImage("no image in this row")
        return content
    offset, size = found.photos[name]
    content = read_range(place, offset, size, ahead=ahead)
    if len(content) < size:
        raise UnreadableImage(f"truncated: {os.path.basename(place)} ends within it")
    return content


def _state(place: str) -> State:
    """What tells whether a container is the one that was read: of a file also its inode and the time of that, as files may be renamed, or
    unpacked with times of their own.
    """
    found = status(place)
    if is_remote(place):
        return found
    with suppress(OSError):  # it went away just now, as whoever reads it will say
        inode = os.stat(place)
        return (*found, inode.st_ino, inode.st_ctime_ns)
    return found


@functools.lru_cache(maxsize=INDEXES)
def _index(place: str, state: State, columns: tuple[str, ...] | None) -> Index:
    path = _kept(place, state)
    with suppress(OSError, ValueError, TypeError):
        kept = Index(**json.loads(path.read_bytes())) if path else None
        if kept:
            kept.captions = Captions(**kept.captions)  # type: ignore[arg-type] # as JSON has it
        if kept and (columns is None or columns == tuple(kept.columns or ())):
            return kept
    build = _index_parquet if place.endswith(".parquet") else _index_tar
    index = build(place, columns or ())
    index.columns = columns or ()
    if path:
        with suppress(OSError, PipelineError), replacing(path, sync=False, folder=True) as file:  # else built again
            file.write(json.dumps(asdict(index)).encode())
    return index


def _kept(place: str, state: State) -> Path | None:
    """Where the index of a container is kept; None: the user has no cache."""
    try:
        key = hashlib.sha256(f"{VERSION}\n{place}\n{state}".encode(errors="surrogateescape")).hexdigest()
        return cache_root() / "containers" / f"{key[:32]}.json"
    except DetectorError:
        return None


def _index_tar(place: str, columns: Sequence[str]) -> Index:
    index, texts, skipped = Index(), defaultdict[str, dict[tuple[str, str], Any]](dict), Counter[str]()
    with open_file(place) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined] # tarfile would keep them all
                    name = member.name.removeprefix("./")
                    suffix = os.path.splitext(name)[1].lower()
                    parts = name.split("/")
                    hidden = any(part.startswith(".") for part in parts) or shadow_of(name) or not stays_inside(name)
                    if member.isreg() and suffix in SUFFIXES and not hidden and not member.issparse():
                        index.photos.pop(name, None)  # of two members of a name the last counts, as when tar unpacks
                        index.photos[name] = (member.offset_data, member.size)
                    elif member.isreg() and suffix in (".txt", ".json") and member.size <= LONGEST_TEXT:
                        try:
                            texts[key_of(name)][infix_of(name), suffix] = text_of(suffix, _content(archive, member))
                        except ValueError:
                            skipped[f"{suffix} that cannot be read"] += 1
                    elif not member.isdir():
                        # Of a file with holes the tar has no bytes in one piece
                        how = " link" if member.issym() or member.islnk() else " of tar -S" if member.issparse() else ""
                        skipped[f"{suffix}{how}"] += 1
                file.seek(archive.offset)
                if index.photos and any(file.read(LONGEST_END)):
                    raise tarfile.ReadError("something follows its end mark, as in tars joined by cat")
        except tarfile.TarError as error:
            if not index.photos and read_range(place, 0, 6).startswith(COMPRESSED):
                raise PipelineError(
                    f"{place}: a compressed tar; photos in it cannot be found without reading it all",
                    "unpack it once: gunzip, unxz or zstd -d",
                ) from error
            index.fault = f"a damaged or truncated tar ({error}): what follows its {len(index.photos):,} photos is lost"
    photos_of_key = Counter(map(key_of, index.photos))
    own = [
        (name, record_of(infix_of(name), texts[key]))
        for name in index.photos
        if photos_of_key[key := key_of(name)] == 1 and key in texts
    ]
    index.captions = captions_of_records(own, columns)
    if several := sum(key in texts for key, count in photos_of_key.items() if count > 1):
        skipped["captions of several images"] = several  # a photo and its mask, say: nobody knows which one they are of
    index.skipped = dict(skipped)
    return index


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a member."""
    content = archive.extractfile(member)
    return content.read() if content else b""


def _index_parquet(place: str, columns: Sequence[str]) -> Index:
    arrow, parquet = pyarrow()
    types, index = arrow.types, Index()
    rows: list[tuple[int, int, dict[str, Any]]] = []
    try:
        with open_file(place) as file, _damage("a damaged or truncated parquet file"):
            table = parquet.ParquetFile(file)
            image = _image_column(place, table.schema_arrow)
            if missing := set(columns).difference(table.schema_arrow.names):
                raise PipelineError(
                    f"{place}: no column {' or '.join(sorted(missing))}, which caption_columns names; "
                    f"found {', '.join(table.schema_arrow.names[:8])}"
                )
            plain = (
                types.is_string,
                types.is_large_string,
                types.is_dictionary,
                types.is_boolean,
                types.is_integer,
                types.is_floating,
                types.is_null,
            )
            wanted = [
                item.name
                for item in table.schema_arrow
                if item.name != image and (is_text(item.name, columns) or any(is_of(item.type) for is_of in plain))
            ]
            others = set(table.schema_arrow.names).difference(wanted, ORDINARY, [image])
            wanted += [f"{image}.path"] if types.is_struct(table.schema_arrow.field(image).type) else []
            counts = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
            for group, count in enumerate(counts):
                records: list[dict[str, Any]] = [{}] * count
                try:
                    with _damage(f"row group {group}: names or captions are damaged"):
                        records = table.read_row_group(group, columns=wanted).to_pylist() if wanted else records
                except UnreadableImage as error:
                    index.fault = str(error)
                rows += [(group, row, record) for row, record in enumerate(records)]
    except UnreadableImage as error:
        index.fault = str(error)
        return index
    stem = os.path.basename(place).rpartition(".")[0]
    titles = [_title(record, image) or f"{stem}/{row:06}" for row, (_, _, record) in enumerate(rows)]
    if not _same_for_one_name(place, titles, rows):
        titles = [f"{stem}/{row:06}" for row in range(len(rows))]
    for title, (group, row, _) in zip(titles, rows, strict=True):
        index.photos.setdefault(title, (group, row))
    texts = [(title, record) for title, (_, _, record) in zip(titles, rows, strict=True)]
    index.captions = captions_of_records(texts, columns, image, others)
    return index


def _image_column(place: str, schema: Any) -> str:
    """The name of the column that holds images."""
    types = pyarrow()[0].types
    binary = [item.name for item in schema if types.is_binary(item.type) or types.is_large_binary(item.type)]
    structs = [item.name for item in schema if types.is_struct(item.type) and item.type.get_field_index("bytes") >= 0]
    named = [name for name in structs + binary if name.lower() in IMAGE_NAMES]
    if not (named or structs):
        raise PipelineError(
            f"{place}: no column of images (a struct with bytes, or bytes named {', '.join(IMAGE_NAMES[:3])}); "
            f"found {', '.join(schema.names[:8])}",
            "a dataset of links has to be downloaded first, say with img2dataset",
        )
    if len(named or structs) > 1:  # photos and their masks, or photos before and after a change
        raise PipelineError(
            f"{place}: {len(named or structs)} columns of images ({', '.join(named or structs)})",
            "name the one to extract image, and leave the others out",
        )
    return (named or structs)[0]


def _title(record: Mapping[str, Any], image: str) -> str:
    """The name of a photo, from its row; "" where it says none."""
    path = (record.get(image) or {}).get("path") if isinstance(record.get(image), dict) else None
    for name in (path, *(record.get(key) for key in FILE_NAMES)):
        if isinstance(name, str) and name:
            name = name.replace("\\", "/")
            return name if stays_inside(name) and not name.startswith(".") else os.path.basename(name)
    return ""


def _same_for_one_name(place: str, titles: Sequence[str], rows: Sequence[tuple[int, int, Any]]) -> bool:
    """Whether rows of one name hold one photo, as in tables with a row for each caption."""
    counted = Counter(titles)
    digests: dict[str, bytes] = {}
    for title, (group, row, _) in zip(titles, rows, strict=True):
        if counted[title] > 1:
            with suppress(UnreadableImage):
                digest = hashlib.sha256(_read_row(place, group, row) or b"").digest()
                if digests.setdefault(title, digest) != digest:
                    return False
    return True


def _read_row(place: str, group: int, row: int) -> bytes | None:
    """The image in a row of a parquet file; None where the row has none."""
    column = _row_group(place, _state(place), group)
    if isinstance(column, str):
        raise UnreadableImage(column)
    if row >= len(column):
        raise UnreadableImage("its row group has fewer rows than its file says")
    value = column[row].as_py()
    return value.get("bytes") if isinstance(value, dict) else value


@functools.lru_cache(maxsize=2)
def _row_group(place: str, state: State, group: int) -> Any:
    """The column of images of a row group, or why it cannot be read: a damaged one is read once for all of its rows."""
    arrow, parquet = pyarrow()
    try:
        with open_file(place) as file, _damage(f"row group {group} of {os.path.basename(place)} is damaged"):
            table = parquet.ParquetFile(file)
            image = _image_column(place, table.schema_arrow)
            is_struct = arrow.types.is_struct(table.schema_arrow.field(image).type)
            return table.read_row_group(group, columns=[f"{image}.bytes" if is_struct else image]).column(0)
    except UnreadableImage as error:
        return str(error)


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """What pyarrow says of a damaged file, as an UnreadableImage."""
    try:
        yield
    except PipelineError:  # a server that does not answer
        raise
    except (pyarrow()[0].ArrowException, OSError, ValueError) as error:  # ValueError: names that are no text
        raise UnreadableImage(f"{what} ({first_line(error)})") from error


def pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet.

    Raises:
        PipelineError: not installed.
    """
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise PipelineError(f"parquet files need pyarrow ({error})", "pip install 'scan-pipeline[parquet]'") from error
    return arrow, parquet
