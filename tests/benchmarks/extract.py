"""Extraction: photos a second, where the time goes, and the ratio to the least and to the published way of doing it.

    python -m tests.benchmarks.extract [--photos N] [--device cpu|cuda] [--precision float32|bf16|fp16] [--images DIR]

The network has its full published shape (`--tiny`: a toy's) and seeded numbers. Three things are timed:

- the whole of `scan-pipeline extract` over N photos, stage by stage. "write" is in another thread: it costs no time of its own.
- the detector alone, from resized pixels to regions, against (a) its convolutions and matrix products alone: the same
  layers on random inputs of the same shapes, one after the other, and against (b) `tests/published.py`: detectron2's own eager
  model with a loop over the classes. They take turns, and the best of several repetitions counts, so that a slow moment of the
  machine hits all.
"""

import argparse
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from torch import Tensor, nn

import detector.extractor
import detector.model
from detector import RegionExtractor
from detector.config import DetectorConfig
from detector.extractor import PRECISIONS
from detector.model import FasterRCNN
from detector.preprocess import PreparedImage
from detector.rewrite import FrozenBatchNorm2d
from detector.weights import Weights
from pipeline.extract import run
from pipeline.extraction import local
from pipeline.extraction.job import ExtractConfig
from tests.benchmarks.similarity import fastest
from tests.published import PublishedDetector

GOALS = {"bare": 1.15, "published": 1.3}
TINY = {"depth": 50, "width": 8, "num_objects": 12, "num_attributes": 5, "rpn_channels": 16, "min_size": 96}


def seeded(config: DetectorConfig) -> tuple[FasterRCNN, Weights]:
    """A network of random numbers that finds hundreds of proposals and is sure of some of them."""
    torch.manual_seed(0)
    model = FasterRCNN(config)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.weight.fill_(0.3 if "conv3" in name else 1.0)  # residual sums stay in bounds
                module.running_var.uniform_(0.8, 1.2)
        model.backbone.stem.conv1.weight.mul_(0.02)
        model.proposal_generator.rpn_head.objectness_logits.weight.mul_(50)
        model.proposal_generator.rpn_head.anchor_deltas.weight.mul_(10)
        model.roi_heads.box_predictor.cls_score.weight.mul_(8)
    names = [[f"{kind}{index}" for index in range(count)] for kind, count in
             (("object", config.num_objects), ("attribute", config.num_attributes))]  # fmt: skip
    return model.eval(), Weights(config, {}, *names, layout="seeded", sha256="0" * 64)


def write_photos(folder: Path, count: int) -> None:
    """COCO's most common shape, with structure at several scales."""
    rng = np.random.default_rng(0)
    for index in range(count):
        layers = [cv2.resize(rng.integers(0, 256, (n, n, 3), np.uint8), (640, 480)) for n in (4, 12, 40)]
        cv2.imwrite(str(folder / f"{index:03}.jpg"), np.mean(layers, axis=0).astype(np.uint8))


class Stages:
    """Time spent in functions, by the name of the stage they stand for."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: Counter[str] = Counter()

    def timed(self, stage: str, function: Callable[..., Any], *, wait: bool = True) -> Callable[..., Any]:
        """`function`; what it launched on a GPU is waited for, as it would otherwise be counted elsewhere."""

        def call(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **options)
            if wait and self.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds[stage] += time.perf_counter() - started
            return result

        return call

    def waited(self, stage: str, items: Iterator[Any]) -> Iterator[Any]:
        """`items`; the time that they take to come is that of the stage."""
        take = self.timed(stage, lambda: next(items, None))
        while (item := take()) is not None:
            yield item

    @contextmanager
    def watching(self, extractor: RegionExtractor) -> Iterator[None]:
        """Every stage of extraction, timed."""
        model, decode, pool = extractor.model, local.decode_photos, detector.model.pooled_chunks
        targets = {
            "upload": (extractor, "_upload"),
            "backbone": (model.backbone, "forward"),
            "RPN": (model, "proposals"),
            "res5": (model.roi_heads.res5, "forward"),
            "predictors": (model, "_read_out"),
            "download": (detector.extractor, "_Launched"),
            "selection": (extractor, "_keep"),
        }
        with ExitStack() as stack:
            for stage, (owner, name) in targets.items():
                stack.enter_context(mock.patch.object(owner, name, self.timed(stage, getattr(owner, name))))
            write = self.timed("write", local.commit_shard, wait=False)
            stack.enter_context(mock.patch.object(local, "commit_shard", write))
            pooled = lambda *a, **k: self.waited("RoI pool", pool(*a, **k))  # noqa: E731
            stack.enter_context(mock.patch.object(detector.model, "pooled_chunks", pooled))
            waited = lambda *a, **k: self.waited("decode wait", decode(*a, **k))  # noqa: E731
            stack.enter_context(mock.patch.object(local, "decode_photos", waited))
            yield


def layer_calls(extractor: RegionExtractor, images: Sequence[PreparedImage]) -> list[Callable[[], object]]:
    """Each convolution and matrix product that these images take, on a random input of its shape."""
    calls: list[Callable[[], object]] = []
    inputs: dict[Any, Tensor] = {}

    def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0]
        key = (x.shape, x.dtype)
        if key not in inputs:
            inputs[key] = torch.empty_like(x).normal_()  # channels-last where it was
        calls.append(lambda: module.forward(inputs[key]))

    layers = [module for module in extractor.model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    extractor(images)
    for hook in hooks:
        hook.remove()
    return calls


def finished(function: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`function`, done only when the GPU is."""

    def call() -> object:
        result = function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return result

    return call


def bench_stages(extractor: RegionExtractor, folder: Path, photos: int, batch_size: int, *, store: Path) -> None:
    settings = ExtractConfig(
        images=(str(folder),), output=str(store), limit=photos, batch_size=batch_size, shard_size=batch_size
    )
    stages = Stages(extractor.device)
    with stages.watching(extractor):
        started = time.perf_counter()
        count = len(run(settings, extractor=extractor, progress=False))
        seconds = time.perf_counter() - started
    written = stages.seconds.pop("write")
    rest = seconds - sum(stages.seconds.values())
    print(f"extract                  {count / seconds:.3g} photos/s, {seconds / count:.3g} s a photo")
    for stage, spent in [*stages.seconds.items(), ("everything else", rest)]:
        print(f"  {stage:22} {spent / seconds:7.2%}")
    print(f"  {'write (in a thread)':22} {written / seconds:7.2%}", flush=True)


@torch.inference_mode()
def bench_ratios(
    extractor: RegionExtractor, model: FasterRCNN, image: PreparedImage, repetitions: int
) -> dict[str, float]:
    device = extractor.device
    published = PublishedDetector(model.to(device), extractor.num_regions)
    boxes, _ = published(image)
    (regions,) = extractor([image])
    missing = torch.cdist(boxes, torch.from_numpy(regions.boxes), p=torch.inf).amin(1) > 1.0
    calls = layer_calls(extractor, [image])
    functions = {
        "ours": lambda: extractor([image]),
        "bare": lambda: [call() for call in calls] and None,
        "published": lambda: published(image),
    }
    times = fastest({name: finished(function, device) for name, function in functions.items()}, repetitions)
    ratios = {"bare": times["ours"] / times["bare"], "published": times["published"] / times["ours"]}
    shown = ", ".join(f"{name} {seconds * 1e3:,.0f} ms" for name, seconds in times.items())
    print(f"detector                 {shown}; {len(boxes) - int(missing.sum())} of {len(boxes)} regions are the same")
    print(
        f"  {ratios['bare']:.2f} x the time of its {len(calls)} bare convolutions and products (goal: at most {GOALS['bare']})"
    )
    print(
        f"  {ratios['published']:.2f} x as fast as detectron2's eager model, class by class (goal: {GOALS['published']})",
        flush=True,
    )
    return ratios


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2)
    parser.add_argument("--images", help="folder of photos; without it they are generated")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="float32", choices=list(PRECISIONS))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a toy network, to see that this program works")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", "torch.meshgrid")  # detectron2 asks for it as torch liked it once
    model, weights = seeded(DetectorConfig(**TINY) if options.tiny else DetectorConfig())
    extractor = RegionExtractor(model, weights, device=options.device, precision=options.precision)
    kind = torch.cuda.get_device_name() if extractor.device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(
        f"{extractor.device} ({kind}), torch {torch.__version__}, {options.precision}{', a toy network' * options.tiny}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.images or temporary) / ("" if options.images else "photos")
        if not options.images:
            folder.mkdir()
            write_photos(folder, options.photos)
        image = extractor.prepare(cv2.imread(str(sorted(folder.glob("*.jpg"))[0])))
        ratios = bench_ratios(extractor, model, image, options.repetitions)
        bench_stages(extractor, folder, options.photos, options.batch_size, store=Path(temporary) / "store")
    return ratios


if __name__ == "__main__":
    main()
