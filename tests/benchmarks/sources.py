"""Decoding alone, without a detector: photos a second from a folder, tars and parquet, and whether memory stays flat.

python -m tests.benchmarks.sources --photos 3000
"""

import argparse
import os
import tarfile
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from detector.preprocess import InputSettings
from pipeline.inputs.decode import decode_photos
from pipeline.inputs.sources import list_photos

SIZE = (480, 640)  # COCO's


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = name
        write(folder, arguments.photos)
        for root in ("photos", "tars", "parquet"):
            start = time.perf_counter()
            photos = list_photos([folder / root])
            listed = time.perf_counter() - start
            start, middle = time.perf_counter(), 0.0
            settings = InputSettings(224, 400, (103.0, 116.0, 123.0))
            for number, _ in enumerate(
                decode_photos(photos, [str(folder / root)], settings, workers=arguments.workers, ahead=16)
            ):
                if number == len(photos) // 2:
                    middle = resident()
            seconds = time.perf_counter() - start
            print(
                f"{root:8} listed in {listed:.2f} s, {len(photos) / seconds:.0f} photos/s; "
                f"resident {middle:.0f} MB in the middle, {resident():.0f} MB at the end"
            )


def write(folder: Path, count: int) -> None:
    """The same photos as files, as tars of 1,000, and as parquet in row groups of 100."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "photos").mkdir()
    (folder / "tars").mkdir()
    (folder / "parquet").mkdir()
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        cv2.imwrite(
            str(folder / f"photos/{number:06}.jpg"), cv2.resize(coarse, SIZE[::-1]), [cv2.IMWRITE_JPEG_QUALITY, 98]
        )
    names = sorted((folder / "photos").iterdir())
    for start in range(0, count, 1000):
        part = names[start : start + 1000]
        with tarfile.open(folder / f"tars/{start:06}.tar", "w") as archive:
            for path in part:
                archive.add(path, path.name)
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in part]
        pq.write_table(pa.table({"image": images}), folder / f"parquet/{start:06}.parquet", row_group_size=100)
    print(f"{count:,} photos of {sum(path.stat().st_size for path in names) / count / 1000:.0f} kB")


def resident() -> float:
    """Memory of this process in MB; Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
