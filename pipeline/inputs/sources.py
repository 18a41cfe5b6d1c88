"""Where photos come from: the list of them, and the bytes of one, in files, containers and behind URLs.

A root is a folder, a tar or parquet file, a pattern of such, or a URL of any of these; `pipeline.store.roots` says how it and a path
below it name a photo. `open_source` decides which kind it is; everything else uses `Source`, or `read_photo` for one place.
"""

import functools
import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from configs.files import file_sha256
from pipeline.errors import PipelineError, UnreadableImage
from pipeline.inputs.containers import Index, index_of, read_member
from pipeline.inputs.packed_captions import pattern_of
from pipeline.inputs.split_words import Cells, split_of_name, split_of_word, splits_told
from pipeline.inputs.storage import (
    SUFFIXES,
    Gone,
    Status,
    files_below,
    forget,
    matching,
    read_all,
    shadow,
    shadow_of,
    status,
)
from pipeline.store.plan import Photo
from pipeline.store.reader import StoredImages
from pipeline.store.roots import (
    CONTAINERS,
    INSIDE,
    absolute,
    folder_of,
    is_container,
    is_remote,
    place_of,
    split_place,
    titled,
)

RAW_SUFFIXES = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srw"}
UNREAD = "field "  # begins what is counted of fields that are not read
MAX_BYTES = 1 << 30  # no image of photos.MAX_PIXELS needs more


Listed = list[tuple[str, Status]]  # photos by their paths below a root; a size or time of 0 is not known


class Source(ABC):
    """Photos that one `--images` names."""

    @abstractmethod
    def photos(self, skipped: Counter[str]) -> Listed:
        """Every photo, in the order in which it is best read; counts other files by suffix."""

    def name(self, path: str) -> str:
        """What a photo is called, by its path below the root."""
        return path

    def captions(self, columns: tuple[str, ...]) -> Iterator[tuple[str, Index]]:
        """Captions that lie with the photos, by the file that holds them; `find_captions` finds those beside a folder.

        `columns` hold them; (): those of known names.
        """
        yield from ()

    def refuse_if_gone(self) -> None:  # noqa: B027 (a container that is gone is an error when it is read)
        """Raises a PipelineError where the photos are no longer there, such as on a disk that was unmounted."""


class Folder(Source):
    """Image files below a folder. Hidden files and those of a `shadow` are skipped, links are followed."""

    def __init__(self, root: str):
        self.root, self._links = Path(root), dict[str, int]()
        if not self.root.is_dir():
            raise PipelineError(
                f"--images {root}: {'a file' if self.root.exists() else 'not there'}; expected a folder of photos"
            )

    def photos(self, skipped: Counter[str]) -> Listed:
        """All of them, by path."""
        return [(path, self.status(path)) for path in sorted(_walk(self.root, "", set(), skipped))]

    def refuse_if_gone(self) -> None:
        """An unmounted disk is not a folder of unreadable photos."""
        if not self.root.is_dir() or next(os.scandir(self.root), None) is None:
            raise PipelineError(
                f"--images {self.root}: its photos are gone", "mount it again and run the same command to continue"
            )

    def status(self, path: str) -> Status:
        """Size and time of a photo, or the later time of a link on the way to it; 0 of one that is gone."""
        place = str(self.root / path)
        with suppress(Gone, FileNotFoundError):  # a broken link, or a file that vanished meanwhile
            found = status(place)
            own = max(os.lstat(place).st_mtime_ns, self._linked(os.path.dirname(path)))
            return found._replace(mtime_ns=max(found.mtime_ns, own))
        return Status(0, 0)

    def _linked(self, folder: str) -> int:
        """When the last of the links on the way to a folder was made: each may lead elsewhere now, to files of the same sizes and times."""
        if folder not in self._links:
            place, above = self.root / folder, self._linked(os.path.dirname(folder)) if folder else 0
            self._links[folder] = max(above, os.lstat(place).st_mtime_ns if place.is_symlink() else 0)
        return self._links[folder]


class Containers(Source):
    """Photos in tar or parquet files, in the order of these."""

    def __init__(self, root: str, files: Sequence[str], others: Sequence[str] = ()):
        self.root, self.files, self.others = root, files, others  # below `folder_of(root)`; the others are not read

    def photos(self, skipped: Counter[str]) -> Listed:
        """All of them; a damaged container is listed as one more, which becomes a failure."""
        photos: Listed = []
        skipped.update(os.path.splitext(file)[1].lower() for file in self.others)
        for file in self.files:
            place = place_of(self.root, file)
            index, found = index_of(place), status(place)
            skipped.update(index.skipped)
            for name, (_, size) in index.photos.items():
                # A row has no size of its own; rows and members change with their file.
                size = found.size if file.endswith(".parquet") else size
                photos.append((f"{file}{INSIDE}{name}", Status(size, found.mtime_ns)))
            if index.fault:
                photos.append((file, found))
        return photos

    def name(self, path: str) -> str:
        """That in its file; below the folder of the file where files of several hold photos of one name."""
        file, inside, name = path.rpartition(INSIDE)
        folder = os.path.dirname(file)
        return f"{folder}/{name}" if inside and folder and self._is_below_folders else name

    @functools.cached_property
    def _is_below_folders(self) -> bool:
        """As of train/0000.parquet and test/0000.parquet."""
        if len(set(map(os.path.dirname, self.files))) < 2:
            return False
        names = Counter(name for file in self.files for name in index_of(place_of(self.root, file)).photos)
        return len(names) < names.total()

    def captions(self, columns: tuple[str, ...]) -> Iterator[tuple[str, Index]]:
        """Those of a photo's row, or of a tar's members with its key."""
        yield from ((file, index_of(place_of(self.root, file), columns)) for file in self.files)


class RemoteFolder(Source):
    """Image files behind a URL."""

    def __init__(self, root: str, files: Mapping[str, Status]):
        self.root, self.files = root, files

    def photos(self, skipped: Counter[str]) -> Listed:
        """All of them, by path."""
        photos: Listed = []
        for file, found in self.files.items():
            if (kind := shadow_of(file) or os.path.splitext(file)[1].lower()) in SUFFIXES:
                photos.append((file, found._replace(size=max(found.size, 0))))
            else:
                skipped[kind] += 1
        return photos

    def name(self, path: str) -> str:
        """HTTP servers quote them."""
        return unquote(path) if self.root.startswith("http") else path

    def refuse_if_gone(self) -> None:
        """The first photo has to be there, or a deleted bucket would be a folder of unreadable photos."""
        forget()
        for path, _ in self.photos(Counter())[:1]:
            status(place_of(self.root, path))


def open_source(root: str) -> Source:
    """What a root names.

    Raises:
        PipelineError: nothing that is there.
    """
    if is_container(root):
        folder = folder_of(absolute(root))
        return Containers(absolute(root), [place[len(folder) + 1 :] for place in matching(absolute(root))])
    if is_remote(root):
        return _remote_source(absolute(root))
    if os.path.isdir(root) and next(_walk(Path(root), "", set(), Counter()), None) is None:
        return _containers(absolute(root), files_below(root)) or Folder(root)
    return Folder(root)


@functools.lru_cache(maxsize=16)
def _remote_source(root: str) -> Source:
    files = files_below(root)
    has_photos = any(os.path.splitext(file)[1].lower() in SUFFIXES for file in files)
    return (None if has_photos else _containers(root, files)) or RemoteFolder(root, files)


def _containers(root: str, files: Iterable[str]) -> Containers | None:
    """The tars of a folder, else its parquet files: img2dataset writes a table without photos beside each tar."""
    for suffix in CONTAINERS:
        if found := [file for file in files if file.endswith(suffix)]:
            return Containers(root, found, [file for file in files if not file.endswith(suffix)])
    return None


def list_photos(roots: Sequence[Path | str], *, skipped: Counter[str] | None = None) -> list[Photo]:
    """Every photo of some `--images`: sorted by id, or where some are in containers, in the order of these.

    `skipped` counts the other files, by suffix.

    Raises:
        PipelineError: a source that is not there, no image at all, or two images with the same id.
    """
    skipped = Counter() if skipped is None else skipped
    _refuse_nested(list(map(str, roots)))
    forget()
    _remote_source.cache_clear()
    photos = []
    for index, (root, prefix) in enumerate(zip(map(str, roots), _prefixes(roots), strict=True)):
        source = open_source(root)
        for path, found in source.photos(skipped):
            photos.append(Photo(prefix + source.name(path), path, index, *found))
    if not photos:
        folders = ", ".join(map(str, roots))
        others = f"; {describe_skipped(skipped)}" if skipped else ""
        raise PipelineError(
            f"--images {folders}: no photo found, looked for {', '.join(sorted(SUFFIXES))} in all subfolders{others}"
        )
    by_id = sorted(photos, key=lambda photo: photo.image_id)
    for left, right in pairwise(by_id):
        if left.image_id == right.image_id:
            two = "files" if INSIDE in left.path else "folders have the same name and"
            raise PipelineError(
                f"--images: two {two} both hold {left.image_id!r}",
                "rename one, or extract each on its own with --output",
            )
    return photos if any(INSIDE in photo.path for photo in photos) else by_id


def captions_of(
    roots: Sequence[str], columns: tuple[str, ...], *, skipped: Counter[str] | None = None
) -> list[dict[str, Any]]:
    """Captions that lie with the photos of some sources, as the images of Karpathy's files, named by the ids of `list_photos`.

    What tells the splits is decided for all files together. `skipped` counts the fields beside captions that are not read.
    """
    captions: list[dict[str, Any]] = []
    told: list[str] = []  # by the names of files, for each
    parts: list[tuple[int, dict[str, Cells]]] = []
    # Of files that are named one by one: folders tell splits where they tell several
    folders = [split_of_word(os.path.basename(folder_of(absolute(root)))) for root in roots]
    folders = folders if len(set(folders) - {""}) > 1 else [""] * len(roots)
    for root, prefix, of_folder in zip(roots, _prefixes(roots), folders, strict=True):
        source = open_source(root)
        held: dict[str, str] = {}  # where captions stand: pattern -> field and file
        for file, index in source.captions(columns):
            own = index.captions
            if own.under and not columns:
                held.setdefault(pattern_of(own.under), f"{own.under} in {file}")
            if len(held) > 1:
                raise PipelineError(
                    f"{root}: captions stand under {' and under '.join(held.values())}",
                    "name the fields that hold captions, caption_columns=[…], or extract the files apart",
                )
            names = (prefix + source.name(f"{file}{INSIDE}{one['filename']}") for one in own.images)
            captions += [{**one, "filename": name} for name, one in zip(names, own.images, strict=True)]
            told += [_split_of(file) or of_folder] * len(own.images)
            parts.append((len(own.images), own.cells))
    cells: dict[str, Cells] = {}
    for name in dict.fromkeys(name for _, part in parts for name in part):
        columns_of_name = [part.get(name, [""] * count) for count, part in parts]
        cells[name] = None if None in columns_of_name else [cell for own in columns_of_name for cell in own or ()]
    splits, unread = splits_told(cells, len(captions))
    if skipped is not None:
        skipped.update(f"{UNREAD}{name}" for name in unread)
    return [{**one, "split": split or name} for one, split, name in zip(captions, splits, told, strict=True)]


def _split_of(file: str) -> str:
    """The split that the name of a container tells, or a folder that it is in."""
    return next(filter(None, map(split_of_name, file.split("/")[::-1])), "")


def _refuse_nested(roots: Sequence[str]) -> None:
    """A folder within another one would bring its photos twice, under two ids."""
    folders = [Path(root).resolve() for root in roots if os.path.isdir(root)]
    for outer, inner in permutations(folders, 2):
        if outer in inner.parents or (outer == inner and len(set(roots)) == len(roots)):
            raise PipelineError(f"--images: {inner} is part of {outer}", "name the outer folder alone")


def _prefixes(roots: Sequence[Path | str]) -> list[str]:
    """What the ids of each source begin with: its name, where there are several."""
    return [f"{os.path.basename(titled(absolute(str(root))))}/" if len(roots) > 1 else "" for root in roots]


def refuse_lost_sources(roots: Sequence[str]) -> None:
    """Raises a PipelineError where the photos of a source are no longer there."""
    for root in roots:
        open_source(root).refuse_if_gone()


def describe_skipped(skipped: Counter[str]) -> str:
    """Files that are no photos, as one line: how many of which kind, and how to include camera raw files; and fields that are not read."""
    files = Counter({kind: count for kind, count in skipped.items() if not kind.startswith(UNREAD)})
    fields = ", ".join(kind.removeprefix(UNREAD) for kind in skipped if kind.startswith(UNREAD))
    unread = [f"fields of parquet or JSON that are not read: {fields}"] if fields else []
    if not files:
        return "".join(unread)
    kinds = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in files.most_common(8))
    more = f", {len(files) - 8} more kinds" if len(files) > 8 else ""
    raw = ["camera raw files have to be converted to JPEG first"] if RAW_SUFFIXES & files.keys() else []
    noun = "file" if files.total() == 1 else "files"
    return "; ".join([f"skipped {files.total():,} other {noun} ({kinds}{more})", *raw, *unread])


def read_photo(place: Path | str, *, ahead: int = 0) -> bytes:
    """The bytes of a photo by its place: a path, a URL, or FILE::NAME of a photo in a container.

    `ahead` bytes are fetched with it, where the next photos of the same container will be asked for.

    Raises:
        UnreadableImage: missing, no regular file, damaged, or too large.
        PipelineError: its container is gone.
    """
    file, name = split_place(str(place))
    if name:
        return read_member(file, name, ahead)
    if is_container(file):
        raise UnreadableImage(index_of(file).fault or "no image, but a file of images")
    if is_remote(file):
        try:
            return read_all(file)
        except Gone as error:
            raise UnreadableImage("cannot be read: no such file") from error
    try:
        found = os.stat(place)
        if not stat.S_ISREG(found.st_mode):  # to read a pipe may never end
            raise UnreadableImage("not a file")
        if found.st_size > MAX_BYTES:
            raise UnreadableImage(f"{found.st_size:,} bytes: more than {MAX_BYTES:,}")
        with open(place, "rb") as opened:
            return opened.read(found.st_size)  # and no more, should it have grown since
    except OSError as error:
        raise UnreadableImage(f"cannot be read: {error.strerror}") from error


def is_place(name: str) -> bool:
    """Whether a name is that of a file, or of a photo in a container or behind a URL."""
    return is_remote(name) or os.path.isfile(split_place(name)[0])


def is_changed(images: StoredImages, row: int) -> bool:
    """Whether a photo is another one than was extracted. Reads it; photos behind URLs are not compared."""
    place = images.image_place(row)
    extracted = images.photo_sha256(row) if place and not is_remote(place) else None
    try:
        return extracted is not None and hashlib.sha256(read_photo(place)).hexdigest() != extracted
    except PipelineError:  # its container holds no such photo any more
        return True


def photo_sha256(root: str, path: str) -> str:
    """Checksum of a photo; "" where it cannot be read."""
    if INSIDE not in path and not is_remote(root):
        return file_sha256(Path(place_of(root, path)))
    try:
        return hashlib.sha256(read_photo(place_of(root, path))).hexdigest()
    except UnreadableImage:
        return ""


def _walk(folder: Path, prefix: str, above: set[tuple[int, int]], skipped: Counter[str]) -> Iterator[str]:
    """POSIX paths of image files below a folder. Links are followed, but never back into a folder that we are in."""
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise PipelineError(f"{folder}: cannot be listed: {error.strerror}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        # DirEntry's own raises for a link that points at itself
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            below = _walk(Path(entry.path), f"{prefix}{entry.name}/", above | {here}, skipped)
            if kind := shadow(folder.name, entry.name):
                skipped.update(kind for _ in below)
            else:
                yield from below
        elif (suffix := os.path.splitext(entry.name)[1].lower()) in SUFFIXES:
            yield prefix + entry.name  # broken links too: they become failure rows, not silent holes
        else:
            skipped[suffix] += 1
