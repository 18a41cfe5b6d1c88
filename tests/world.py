"""A folder as a new user has it: coco/train2014 with captions, and the command line to type into."""

import json
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from pipeline.cli import main
from tests.photos import write_photos

PHOTO = "COCO_train2014_{:012}.jpg"  # name of a photo by its number, from 0
THINGS = ["dog", "tree", "ball", "boat", "house"]
SMALL_TRAINING = [
    "--epochs", "2", "--batch-size", "8", "model.embed_dim=16", "model.word_dim=8", "training.min_word_count=1",
]  # fmt: skip


# What no query needs, and what takes long to import.
HEAVY = {
    "transformers", "pandas", "sklearn", "scipy", "sympy", "matplotlib", "ray", "onnx", "onnxruntime", "torchvision", "tensorboard",
    "torch._dynamo", "torch.distributed.tensor", "detectron2", "timm", "faiss", "starlette", "huggingface_hub", "h5py", "pyarrow",
}  # fmt: skip


def scan(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


def imported_by(*arguments: str) -> set[str]:
    """The modules that a command of its own process has imported when it ends."""
    code = "import sys; from pipeline.cli import main; main(sys.argv[1:], standalone_mode=False); print('IMPORTED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(done.stdout.split("IMPORTED ")[1].split())


def extract_again(*options: str) -> None:
    """The folder's photos into features/mine: its other store finds those that it was copied from."""
    command = ["extract", "--images", "coco/train2014", "--output", "features/mine", "--num-regions", "6", *options]
    extracted = scan(*command, "--workers", "0", "--device", "cpu")
    assert extracted.exit_code == 0, extracted.output


def lay_out_coco(folder: Path, count: int = 20) -> None:
    """coco/train2014 and its captions as COCO lays them out."""
    write_photos(folder / "coco/train2014", count, names=PHOTO)
    images = [{"id": index, "file_name": PHOTO.format(index)} for index in range(count)]
    rows = [
        {
            "id": 700 + 2 * index + number,
            "image_id": index,
            "caption": f"A {THINGS[index % 5]} by a {THINGS[index % 3]}.",
        }
        for index in range(count)
        for number in range(2)
    ]
    path = folder / "coco/annotations/captions_train2014.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"images": images, "annotations": rows}))
