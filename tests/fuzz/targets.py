"""What is fuzzed: every reader of bytes that come from elsewhere. Whatever the bytes, it answers or raises PipelineError."""

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image
from safetensors.numpy import save

from pipeline.errors import PipelineError
from pipeline.inputs.captions import read_captions
from pipeline.inputs.photos import MAX_PIXELS, decode_image, decode_thumbnail, read_image_size
from pipeline.store.manifest import read_manifest, settings_sha256
from pipeline.store.marks import SEAL, read_mark, seal
from pipeline.store.plan import PlannedShard, is_as_planned, read_plan, rebuilt_plan
from pipeline.store.reader import Shard, open_store
from pipeline.store.tensors import map_safetensors
from tests.stores import import_any

MANIFEST = {
    "format": "scan-pipeline/shards", "format_version": 1, "num_regions": 2, "feature_dim": 3, "dtype": "float16",
    "has_boxes": True, "extraction": {"imported": "by hand"}, "image_roots": ["/photos"], "relative_roots": ["../photos"], "object_names": ["dog"],
    "attribute_names": ["red"], "counts": {"images": 1, "failures": 0, "shards": 1}, "complete": True,
}  # fmt: skip
MARK = {
    "image_ids": ["a.jpg", "b/c.jpg"], "paths": ["a.jpg", None], "roots": [0, 0], "sha256": "0" * 64,
    "settings_sha256": "0" * 64, "photo_sha256": {"a.jpg": "1" * 64},
    "failures": [{"image_id": "d.jpg", "path": "d.jpg", "reason": "truncated"}],
}  # fmt: skip
PLAN = [
    {"image_id": f"{name}.jpg", "path": f"{name}.jpg", "root": 0, "shard": number, "size": 9, "mtime_ns": 1}
    for number, name in enumerate("abc")
]


def small_tensors() -> bytes:
    """A safetensors file of the shard that MARK marks."""
    from pipeline.store.format import tensor_shapes

    shapes = tensor_shapes(MANIFEST)
    arrays = {name: np.ones((2, *shape), dtype) for name, (shape, dtype) in shapes.items()}
    return save(arrays)


def small_images() -> list[bytes]:
    """One image of every format and of several kinds."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    images = []
    for kind, options in [
        ("JPEG", {"exif": exif}), ("JPEG", {"progressive": True}), ("PNG", {"exif": exif}), ("BMP", {}), ("WEBP", {}),
        ("WEBP", {"lossless": True}), ("WEBP", {"save_all": True, "append_images": [noise.rotate(90)]}),
    ]:  # fmt: skip
        buffer = BytesIO()
        noise.save(buffer, kind, **options)
        images.append(buffer.getvalue())
    pillow_heif.register_heif_opener()
    for kind, options in [
        ("HEIF", {"exif": exif.tobytes()}), ("AVIF", {}), ("GIF", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
    ]:  # fmt: skip
        buffer = BytesIO()
        noise.save(buffer, kind, **options)
        images.append(buffer.getvalue())
    for mode, kind in [("P", "PNG"), ("1", "PNG"), ("P", "BMP"), ("CMYK", "JPEG"), ("LA", "PNG")]:
        buffer = BytesIO()
        noise.convert(mode).save(buffer, kind)
        images.append(buffer.getvalue())
    return images


def small_image(kind: str) -> bytes:
    """17 x 13 pixels of noise, in a format of Pillow's."""
    pillow_heif.register_heif_opener()
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def image(data: bytes) -> None:
    with suppress(PipelineError):
        found = decode_image(data)
        assert found.dtype == np.uint8
        assert found.ndim == 3
        assert found.shape[0] * found.shape[1] <= MAX_PIXELS


def image_size(data: bytes) -> None:
    with _file("x.jpg", data) as path, suppress(PipelineError):
        assert all(side > 0 for side in read_image_size(path))
    with _file("x.jpg", data) as path, suppress(PipelineError):
        assert 0 < max(decode_thumbnail(path.read_bytes(), 8).shape[:2]) <= 8


def tensors(data: bytes) -> None:
    with _file("shard-00000.safetensors", data) as path, suppress(PipelineError):
        for array in map_safetensors(path).values():
            array.sum()
    with _file("shard-00000.safetensors", data) as path, suppress(PipelineError):
        (path.parent / "shard-00000.json").write_bytes(sealed(json.dumps(MARK).encode()))
        shard = Shard(path.parent / "shard-00000.json", MANIFEST)
        assert shard.regions(1).features.shape == (2, 3)


def sealed(data: bytes) -> bytes:
    """A mark with the right checksums of itself and its settings, where it is JSON at all."""
    try:
        content = json.loads(data)
        if "settings_sha256" in content:
            content["settings_sha256"] = settings_sha256(MANIFEST)
        return json.dumps({**content, SEAL: seal("shard-00000.json", content)}).encode()
    except (ValueError, TypeError, RecursionError):
        return data


def mark(data: bytes) -> None:
    with _file("shard-00000.json", data) as path, suppress(PipelineError):
        read_mark(path)
    with _file("shard-00000.json", sealed(data)) as path, suppress(PipelineError):
        found = read_mark(path)
        assert len(found.image_ids) == len(found.roots)
        plan = rebuilt_plan([found], ["/photos", "/more"])
        is_as_planned(found, plan[0])
        for row in range(len(found.image_ids)):
            assert ".." not in str(Shard(path, MANIFEST).image_place(row)).split("/")


def manifest(data: bytes) -> None:
    with _file("manifest.json", data) as path, suppress(PipelineError):
        read_manifest(path.parent)
        assert len(open_store(path.parent)) == 0


def plan(data: bytes) -> None:
    with _file("images.jsonl", data) as path, suppress(PipelineError):
        shards = read_plan(path.parent)
        assert all(isinstance(shard, PlannedShard) and shard.photos for shard in shards)
        assert all(not photo.path.startswith("/") for shard in shards for photo in shard.photos)


def captions(data: bytes) -> None:
    with _file("captions.txt", data) as path, suppress(PipelineError):
        assert read_captions(path)


def tsv(data: bytes) -> None:
    with _file("features.tsv", data) as path, suppress(PipelineError):
        import_any(path, output=str(path.parent / "store"))


def small_tsv() -> bytes:
    """One row of Caffe's six columns."""
    import base64

    numbers = [base64.b64encode(np.full(count, 9, np.float32).tobytes()).decode() for count in (8, 6)]
    return "\t".join(["7", "640", "480", "2", *numbers]).encode() + b"\n"


def small_captions() -> list[bytes]:
    """COCO's, Karpathy's and plain captions."""
    coco = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 2, "image_id": 1, "caption": "a dog"}]}
    karpathy = {"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "a dog", "sentid": 0}]}]}
    return [
        json.dumps(coco).encode(),
        json.dumps(karpathy).encode(),
        b"a.jpg\ta dog\n",
        b"image,caption\na.jpg,a dog\n",
    ]


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "image": (image, small_images),
    "image_size": (image_size, small_images),
    "tensors": (tensors, lambda: [small_tensors()]),
    "mark": (mark, lambda: [json.dumps(MARK).encode()]),
    "manifest": (manifest, lambda: [json.dumps(MANIFEST).encode()]),
    "plan": (plan, lambda: ["\n".join(map(json.dumps, PLAN)).encode()]),
    "captions": (captions, small_captions),
    "tsv": (tsv, lambda: [small_tsv()]),
}


class _file:
    """The bytes as a file in a folder of its own."""

    def __init__(self, name: str, data: bytes):
        self.name, self.data = name, data

    def __enter__(self) -> Path:
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        path = Path(self.folder.name) / self.name
        path.write_bytes(self.data)
        return path

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()
