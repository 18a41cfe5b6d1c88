"""The full-size network against numbers of an independent implementation (LXMERT's pure-PyTorch model).

Bounds: boxes 0.05 px, probabilities 1e-3, features 1e-2.
"""

import importlib.util
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from detector.boxes import inclusive_cell_anchors
from detector.extractor import RegionExtractor
from detector.model import FasterRCNN, Predictions
from detector.preprocess import PreparedImage
from detector.regions import Regions
from detector.weights import load_weights

PHOTOS = [f"COCO_train2014_000000{number}.jpg" for number in (131486, 132417, 573195)]
pytestmark = [pytest.mark.shared, pytest.mark.slow]


@dataclass
class Forward:
    """One pass of the network over one photo, kept so that every test can look at it."""

    image: PreparedImage
    features: Tensor
    proposals: Tensor
    predictions: Predictions

    def regions(self, extractor: RegionExtractor) -> Regions:
        """What the extractor's rule keeps."""
        return extractor._keep(self.image, extractor._candidates(self.proposals, self.predictions))


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def state(shared: Path) -> dict[str, Tensor]:
    return load_module(shared / "reference" / "standin_checkpoint.py").state_dict()


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "reference" / "detector_golden.npz"))


@pytest.fixture(scope="module")
def lxmert_file(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lxmert") / "pytorch_model.bin"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def extractors(lxmert_file: Path) -> dict[str, RegionExtractor]:
    """Both selection rules, the weights read from an LXMERT file."""
    rules = ("caffe", "maxclass")
    return {rule: RegionExtractor.from_weights(lxmert_file, selection=rule, device="cpu") for rule in rules}


@pytest.fixture(scope="module")
def forwards(extractors: dict[str, RegionExtractor], shared: Path) -> dict[str, Forward]:
    extractor = extractors["caffe"]
    found = {}
    with torch.inference_mode():
        for name in PHOTOS:
            image = extractor.prepare(cv2.imread(str(shared / "data/bottom_up/images" / name)))
            features = backbone(extractor.model, image)
            proposals = extractor.model.proposals(features, [image.pixels.shape[:2]], image.scale[:1])
            found[name] = Forward(image, features, proposals[0], extractor.model.predict(features, proposals)[0])
    return found


def backbone(model: FasterRCNN, image: PreparedImage) -> Tensor:
    return model.backbone(torch.from_numpy(image.pixels).permute(2, 0, 1)[None])["res4"]


def matched(found: np.ndarray, wanted: np.ndarray, *, further: int = 2) -> np.ndarray:
    """For each wanted box the row found that has it, no row twice.

    Scores that differ in the seventh digit (another BLAS, another instruction set) may swap neighbours in the
    ranking, and exact ties stand in any order: rows may lie `further` places apart, not more.
    """
    assert found.shape == wanted.shape
    distance = np.abs(found[None] - wanted[:, None]).max(-1)  # (wanted, found)
    places = np.arange(len(wanted))
    near = np.abs(places[None] - places[:, None]) <= further
    rows = np.where(near, distance, np.inf).argmin(1)
    assert len(set(rows.tolist())) == len(rows), "one box stands for two"
    np.testing.assert_allclose(found[rows], wanted, atol=0.05)
    return rows


@pytest.mark.parametrize("name", PHOTOS)
def test_proposals_and_head_agree(forwards: dict[str, Forward], golden: dict[str, np.ndarray], name: str) -> None:
    found = forwards[name]
    rows = matched(found.proposals.numpy(), golden[f"{name}/proposals_resized"])
    wanted = golden[f"{name}/class_probs"][:, :-1]
    np.testing.assert_allclose(found.predictions.class_probabilities[rows], wanted, atol=1e-3)
    np.testing.assert_allclose(found.predictions.features.mean(0), golden[f"{name}/pooled_mean"], atol=1e-2)


@pytest.mark.parametrize("name", PHOTOS)
def test_caffe_selection_agrees(
    extractors: dict[str, RegionExtractor], forwards: dict[str, Forward], golden: dict[str, np.ndarray], name: str
) -> None:
    found = forwards[name]
    regions = found.regions(extractors["caffe"])
    height, width = found.image.image_size
    wanted = golden[f"{name}/caffe/boxes"].clip(max=[width, height, width, height])  # ours never leave the photo
    rows = matched(regions.boxes, wanted, further=36)
    np.testing.assert_allclose(regions.features[rows], golden[f"{name}/caffe/features"], atol=1e-2)


@pytest.mark.parametrize("name", PHOTOS)
def test_maxclass_selection_agrees(
    extractors: dict[str, RegionExtractor], forwards: dict[str, Forward], golden: dict[str, np.ndarray], name: str
) -> None:
    found = forwards[name]
    regions = found.regions(extractors["maxclass"])
    key = f"{name}/maxclass"
    rows = matched(regions.boxes, golden[f"{key}/boxes"])
    np.testing.assert_array_equal(regions.object_ids[rows], golden[f"{key}/object_ids"])
    np.testing.assert_array_equal(regions.attribute_ids[rows], golden[f"{key}/attribute_ids"])
    np.testing.assert_allclose(regions.object_scores[rows], golden[f"{key}/object_probs"], atol=1e-3)
    np.testing.assert_allclose(regions.attribute_scores[rows], golden[f"{key}/attribute_probs"], atol=1e-3)
    np.testing.assert_allclose(regions.features[rows], golden[f"{key}/features"], atol=1e-2)


def test_the_airsplay_layout_gives_the_same_network(
    state: dict[str, Tensor], lxmert_file: Path, tmp_path: Path
) -> None:
    arrays = {
        name: tensor.numpy()
        for name, tensor in state.items()
        if "num_batches_tracked" not in name and "cell_anchors" not in name
    }
    with (tmp_path / "faster_rcnn_from_caffe_attr.pkl").open("wb") as file:
        pickle.dump({"model": arrays}, file)
    weights = load_weights(tmp_path / "faster_rcnn_from_caffe_attr.pkl")
    assert weights.layout == "airsplay"
    model = FasterRCNN(weights.config)
    model.load_state_dict(load_weights(lxmert_file).tensors)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(weights.tensors[name], tensor, rtol=1e-6, atol=1e-5)


@pytest.fixture(scope="module")
def milvlg(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> FasterRCNN:
    """The same numbers in the MILVLG layout."""
    path = tmp_path_factory.mktemp("milvlg") / "bua-caffe-frcn-r101-k36.pth"
    rewrite = load_module(Path(__file__).with_name("test_weights.py")).to_milvlg
    torch.save({"model": rewrite(state)}, path)
    weights = load_weights(path)
    model = FasterRCNN(weights.config)
    model.load_state_dict(weights.tensors)
    return model.eval()


def test_milvlg_head_agrees_on_the_golden_proposals(
    milvlg: FasterRCNN, forwards: dict[str, Forward], golden: dict[str, np.ndarray]
) -> None:
    name = PHOTOS[0]
    proposals = torch.from_numpy(golden[f"{name}/proposals_resized"])[:64]
    with torch.inference_mode():
        found = milvlg.predict(forwards[name].features, [proposals])[0]
    np.testing.assert_allclose(found.class_probabilities, golden[f"{name}/class_probs"][:64, :-1], atol=1e-3)
    rows = matched(forwards[name].proposals.numpy(), golden[f"{name}/proposals_resized"])[:64]
    same = forwards[name].predictions
    np.testing.assert_allclose(found.features, same.features[rows], atol=1e-2)
    np.testing.assert_array_equal(found.attribute_probabilities.argmax(1), same.attribute_probabilities[rows].argmax(1))


def test_milvlg_proposals_agree_with_a_plain_loop(milvlg: FasterRCNN, forwards: dict[str, Forward]) -> None:
    found = forwards[PHOTOS[0]]
    height, width = found.image.pixels.shape[:2]
    with torch.inference_mode():
        logits, deltas = milvlg.proposal_generator.rpn_head([found.features])
        proposals = milvlg.proposals(found.features, [(height, width)], found.image.scale[:1])[0]
    wanted = plain_caffe_proposals(logits[0][0].numpy(), deltas[0][0].numpy(), height, width, found.image.scale[0])
    matched(proposals[: len(wanted)].numpy(), wanted)


def plain_caffe_proposals(logits: np.ndarray, deltas: np.ndarray, height: int, width: int, scale: float) -> np.ndarray:
    """The first proposals of Caffe's layer, one anchor after another. logits (A, H, W), deltas (4 A, H, W)."""
    cells = inclusive_cell_anchors((64, 128, 256, 512), (0.5, 1.0, 2.0)).numpy()
    rows = []
    for y in range(logits.shape[1]):
        for x in range(logits.shape[2]):
            for index, cell in enumerate(cells):
                x1, y1, x2, y2 = cell + 16 * np.array([x, y, x, y])
                w, h = x2 - x1 + 1, y2 - y1 + 1
                dx, dy, dw, dh = deltas[4 * index : 4 * index + 4, y, x]
                cx, cy = dx * w + x1 + w / 2, dy * h + y1 + h / 2
                limit = math.log(1000 / 16)
                w, h = math.exp(min(dw, limit)) * w, math.exp(min(dh, limit)) * h
                box = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
                box = np.clip(box, 0, [width - 1, height - 1, width - 1, height - 1])
                if (box[2:] - box[:2] + 1 >= 16 * scale).all():
                    rows.append((logits[index, y, x], box))
    rows.sort(key=lambda row: -row[0])
    kept: list[np.ndarray] = []
    for _, box in rows[:6000]:
        if all(inclusive_iou(box, other) <= 0.7 for other in kept):
            kept.append(box)
        if len(kept) == 100:
            break
    return np.array(kept)


def inclusive_iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + 1
    overlap = sides.clip(0).prod()
    return overlap / ((a[2:] - a[:2] + 1).prod() + (b[2:] - b[:2] + 1).prod() - overlap)


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 1e-2), ("fp16", 2e-3)])
def test_low_precision_deviates_no_more_than_stated(
    lxmert_file: Path, shared: Path, precision: str, bound: float
) -> None:
    """Features of the same boxes, relative to their norm. Which boxes are found depends on near ties, and may differ."""
    small = {"min_size": 224, "max_size": 400}
    full, low = (
        RegionExtractor.from_weights(lxmert_file, device="cpu", precision=name, config_overrides=small)
        for name in ("float32", precision)
    )
    image = full.prepare(cv2.imread(str(shared / "data/bottom_up/images" / PHOTOS[0])))
    height, width = image.pixels.shape[:2]
    proposals = [torch.tensor([[0, 0, width, height], [30, 40, 120, 160], [100, 20, 220, 90], [5, 150, 60, 200.0]])]
    with torch.inference_mode():
        wanted, found = (
            extractor.model.predict(extractor.model.backbone(extractor._upload([image]))["res4"], proposals)[0]
            for extractor in (full, low)
        )
    deviation = (found.features - wanted.features).norm(dim=1) / wanted.features.norm(dim=1)
    assert 0 < deviation.max() < bound
    torch.testing.assert_close(found.class_probabilities, wanted.class_probabilities, rtol=0, atol=5 * bound)
