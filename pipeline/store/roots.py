"""Where photos are: a root that a user named, and a path below it.

    root                                path                      place
    /data/train2014                     a/1.jpg                   /data/train2014/a/1.jpg
    /data/train2014                     00000.tar::1.jpg          /data/train2014/00000.tar::1.jpg
    /data/train2014/{00000..00099}.tar  00000.tar::1.jpg          /data/train2014/00000.tar::1.jpg
    s3://bucket/data/train-*.parquet    train-0.parquet::1.jpg    s3://bucket/data/train-0.parquet::1.jpg

A *container* is a tar or parquet file that holds photos; `::` separates it from the name of one in it. Nothing here reads.
"""

import os
import re

CONTAINERS = (".tar", ".parquet")
INSIDE = "::"
PATTERN = set("{*?[")
_PLACE = re.compile(r"(.+?\.(?:tar|parquet))::(.+)", re.DOTALL)


def is_remote(root: str) -> bool:
    """Whether it is a URL."""
    return re.match(r"[a-z][a-z0-9+.-]*://", root) is not None


def is_container(root: str) -> bool:
    """Whether a root is one container, or a pattern of some, and not a folder."""
    return root.endswith(CONTAINERS) and (is_remote(root) or not os.path.isdir(root))


def absolute(root: str) -> str:
    """A root that means the same in every working folder."""
    return root.rstrip("/") if is_remote(root) else os.path.abspath(root)


def relative(root: str, folder: str) -> str:
    """A root as seen from a folder; a URL is the same from everywhere."""
    return root if is_remote(root) else os.path.relpath(root, folder)


def folder_of(root: str) -> str:
    """The folder that the paths of a root start from."""
    if not is_container(root):
        return root
    parts = root.split("/")
    fixed = next((index for index, part in enumerate(parts) if PATTERN & set(part)), len(parts) - 1)
    return "/".join(parts[:fixed])


def titled(root: str) -> str:
    """A root as the folder that would hold its photos: data/train2014.tar and data/train2014/{0..9}.tar are data/train2014."""
    if not is_container(root):
        return root
    stem = re.split(r"[{*?[]", os.path.basename(root).rpartition(".")[0])[0]
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", stem).rstrip("-_.")  # as the hub numbers parquet files
    return f"{folder_of(root)}/{stem}" if stem else folder_of(root)


def place_of(root: str, path: str, base: str = "") -> str:
    """Where a photo is; `base` is the folder that a relative root starts from."""
    if is_remote(root):
        return f"{folder_of(root)}/{path}"
    return os.path.normpath(os.path.join(folder_of(os.path.join(base, root)), path))


def split_place(place: str) -> tuple[str, str]:
    """File and name inside of it; the name is "" where the file is the photo."""
    found = None if os.path.isfile(place) else _PLACE.fullmatch(place)
    return (found[1], found[2]) if found else (place, "")
