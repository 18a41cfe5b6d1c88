"""The part of `scan-pipeline doctor` that imports and runs what it examines. It prints one JSON object a check.

Its own process, as a broken library may end it. Whatever is printed by then counts.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.doctor.report import BROKEN, MISSING, NOTE, OK, Check, examine, one_line, torch_again

if TYPE_CHECKING:
    import torch

    from detector import RegionExtractor

CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")


def main() -> None:
    """Examine libraries, devices, and a tiny detector on a made-up photo, until something is in the way."""
    sections = {"libraries": _libraries, "devices": _devices, "self-test": _self_test}
    for check in examine(sections, remedy=torch_again()):
        print(json.dumps(asdict(check)), flush=True)
        if check.state == BROKEN:
            return


def _libraries() -> Iterator[Check]:
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    yield Check(OK, f"torch {torch.__version__} ({cuda}), loads")
    import torchvision

    torchvision.ops.nms(
        torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5
    )  # raises where its operators do not load
    yield Check(OK, f"torchvision {torchvision.__version__}, its compiled operators run")
    import cv2

    yield Check(OK, f"opencv {cv2.__version__}, loads")
    yield _detectron2()


def _detectron2() -> Check:
    from detector.detectron2_compat import install_command, prepare_detectron2
    from detector.errors import DetectorError

    try:
        prepare_detectron2()
        import detectron2
        import detectron2._C as compiled
        from detectron2.modeling.backbone import resnet  # noqa: F401 (what the detector is built of)
    except (DetectorError, ImportError) as error:
        return Check(BROKEN, f"detectron2: {one_line(error)}", install_command())
    served = (
        "its compiled operators" if hasattr(compiled, "__file__") else "torchvision's operators in place of its own"
    )
    return Check(OK, f"detectron2 {detectron2.__version__}, with {served}")


def _devices() -> Iterator[Check]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if CGROUP_MEMORY.is_file() and (limit := CGROUP_MEMORY.read_text().strip()).isdigit():
        memory = min(memory, int(limit))
    yield Check(OK, f"cpu: {cores} cores, {torch.get_num_threads()} threads, {memory / 2**30:.0f} GiB of memory")
    if torch.backends.mps.is_available():
        yield Check(OK, "mps: Apple GPU")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _gpu(index)
    elif Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi"):
        yield _why_no_cuda()
    else:
        yield Check(NOTE, "cuda: no NVIDIA GPU here; extract --config quick_cpu is for that")


def _gpu(index: int) -> Check:
    import torch

    found = torch.cuda.get_device_properties(index)
    what = f"cuda:{index}: {found.name}, {found.total_memory / 2**30:.0f} GiB, capability {found.major}.{found.minor}"
    try:
        torch.ones(8, 8, device=f"cuda:{index}").mm(torch.ones(8, 8, device=f"cuda:{index}")).cpu()
    except RuntimeError as error:
        remedy = f"a torch that supports this GPU and driver, or --device cpu; {torch_again()}"
        return Check(MISSING, f"{what}; does not compute: {one_line(error)}", remedy)
    return Check(OK, what)


def _why_no_cuda() -> Check:
    """There is a GPU or its driver, and torch does not use it."""
    import torch

    if torch.version.cuda is None:
        return Check(MISSING, "cuda: an NVIDIA driver is here, but this torch is built without CUDA", torch_again())
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return Check(NOTE, "cuda: hidden", "unset CUDA_VISIBLE_DEVICES")
    try:
        torch.cuda.init()
        reason = "no device"
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error)
    return Check(MISSING, f"cuda: {reason}", "update the NVIDIA driver, or start the container with --gpus all")


def _self_test() -> Iterator[Check]:
    import cv2
    import numpy as np
    import torch

    from pipeline.device import pick_device
    from pipeline.inputs.photos import decode_image

    coarse = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    _, encoded = cv2.imencode(".jpg", cv2.resize(coarse, (128, 96)))
    photo = decode_image(encoded.tobytes())
    for device in dict.fromkeys([torch.device("cpu"), pick_device("auto")]):
        extractor = _tiny_detector(device)
        begin = time.perf_counter()
        (regions,) = extractor([photo])
        seconds = time.perf_counter() - begin
        if regions.features.shape != (4, extractor.feature_dim) or not np.isfinite(regions.features).all():
            yield Check(BROKEN, f"{device}: a tiny detector found no regions", torch_again())
            return
        yield Check(OK, f"{device}: a tiny detector found regions in a made-up photo ({seconds:.2f} s)")


def _tiny_detector(device: "torch.device") -> "RegionExtractor":
    import torch

    from detector import RegionExtractor
    from detector.config import DetectorConfig
    from detector.model import FasterRCNN
    from detector.vocabulary import default_names
    from detector.weights import Weights

    config = DetectorConfig(
        depth=18, width=8, num_objects=12, num_attributes=5, min_size=96, max_size=160, rpn_post_nms=60, rpn_channels=16
    )
    torch.manual_seed(0)
    model = FasterRCNN(config)
    weights = Weights(config, {}, *default_names(config), "made up", "")
    return RegionExtractor(model, weights, num_regions=4, device=device)


if __name__ == "__main__":
    main()
