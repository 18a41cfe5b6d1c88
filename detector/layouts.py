"""The layouts in which the published Visual Genome detector is found, told apart by their keys and shapes.

| layout | told by |
|---|---|
| lxmert  | 12-channel objectness, class scores with background last, carries its cell anchors |
| airsplay | the same names and shapes, without cell anchors; a pickle of NumPy arrays |
| milvlg  | 24-channel objectness, background first, attribute layers under other names, Caffe's box geometry |
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detector.config import BLOCKS, DetectorConfig
from detector.errors import DetectorError

BOX = "roi_heads.box_predictor"
OBJECTNESS = "proposal_generator.rpn_head.objectness_logits"
ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
LAYOUTS = (
    "LXMERT pytorch_model.bin, airsplay faster_rcnn_from_caffe_attr*.pkl, MILVLG bua-caffe-frcn-r101*.pth, "
    "or safetensors written by scan-pipeline convert-weights"
)
MILVLG_NAMES = {"cls_embed": "cls_embedding", "attr_linear1": "fc_attr", "attr_linear2": "attr_score"}


def normalize(state: Mapping[str, Tensor], path: str) -> tuple[str, DetectorConfig, dict[str, Tensor]]:
    """Recognise a published layout and rename its parameters to ours.

    Returns:
        The layout's name, the configuration that its shapes tell, and the tensors under our names.

    Raises:
        DetectorError: no known layout; it names the path.
    """
    tensors = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    missing = [name for name in (f"{OBJECTNESS}.weight", f"{BOX}.cls_score.weight") if name not in tensors]
    if missing:
        found = ", ".join(sorted(tensors)[:3]) or "nothing"
        raise DetectorError(f"{path}: no {missing[0]} in it (found {found}, …); expected a detector: {LAYOUTS}")
    objectness = tensors[f"{OBJECTNESS}.weight"].shape[0]
    anchors = tensors.get("proposal_generator.rpn_head.anchor_deltas.weight", torch.empty(0)).shape[0] // 4
    if objectness == 2 * anchors:
        return "milvlg", _config(tensors, path, caffe=True), _from_milvlg(tensors)
    layout = "lxmert" if ANCHORS in tensors else "airsplay"
    config = _config(tensors, path, caffe=False)
    if ANCHORS in tensors:
        tensors["cell_anchors"] = tensors.pop(ANCHORS)
    return layout, config, tensors


def check_shapes(config: DetectorConfig, tensors: dict[str, Tensor], path: str) -> None:
    """Refuse tensors that do not fill the network of this configuration exactly.

    Raises:
        DetectorError: naming the first parameter that is missing, superfluous or of another shape.
    """
    if difference := different_shape(config, tensors):
        raise DetectorError(f"{path}: {difference}; expected one of: {LAYOUTS}", "download or convert it again")


def different_shape(config: DetectorConfig, tensors: Mapping[str, Tensor], parts: tuple[str, ...] = ("",)) -> str:
    """Where tensors first differ from what the network of a configuration has, in words; "" where they fill it exactly.

    `parts` are beginnings of the names that have to be there; the others must not.
    """
    from detector.model import FasterRCNN

    with torch.device("meta"):
        state = FasterRCNN(config).state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items() if name.startswith(parts)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            return f"{name} is {found.get(name, 'missing')}, expected {wanted.get(name, 'no such parameter')}"
    return ""


def _from_milvlg(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names; and one logit per anchor: softmax over (background, object) is a sigmoid of their difference."""
    renamed = {}
    for name, tensor in tensors.items():
        for theirs, ours in MILVLG_NAMES.items():
            name = name.replace(f"{BOX}.{theirs}.", f"{BOX}.{ours}.")
        if name.startswith(OBJECTNESS):
            background, foreground = tensor.float().chunk(2)
            tensor = foreground - background
        renamed[name] = tensor
    renamed.pop(ANCHORS, None)  # computed: its anchors are those of Caffe's geometry
    return renamed


def _config(tensors: Mapping[str, Tensor], path: str, *, caffe: bool) -> DetectorConfig:
    """What the shapes tell; the rest is the published network's."""
    objects = tensors[f"{BOX}.cls_score.weight"].shape[0] - 1
    attributes = tensors.get(f"{BOX}.attr_score.weight", tensors.get(f"{BOX}.attr_linear2.weight"))
    known: dict[str, Any] = {
        "depth": _depth(tensors, path),
        "width": tensors["backbone.stem.conv1.weight"].shape[0] if "backbone.stem.conv1.weight" in tensors else 64,
        "rpn_channels": tensors[f"{OBJECTNESS}.weight"].shape[1],
        "num_objects": objects,
        "num_attributes": 0 if attributes is None else attributes.shape[0] - 1,
    }
    if caffe:
        known |= {
            "geometry": "inclusive",
            "background": "first",
            "box_weights": (1.0, 1.0, 1.0, 1.0),
            "rpn_min_size": 16.0,
        }
    return replace(DetectorConfig(), **known)


def _depth(tensors: Mapping[str, Tensor], path: str) -> int:
    counts = []
    for stage in ("backbone.res2", "backbone.res3", "backbone.res4", "roi_heads.res5"):
        counts.append(len({name.split(".")[2] for name in tensors if name.startswith(f"{stage}.")}))
    bottleneck = "roi_heads.res5.0.conv3.weight" in tensors
    for depth, blocks in BLOCKS.items():
        if blocks == tuple(counts) and (depth >= 50) == bottleneck:
            return depth
    raise DetectorError(f"{path}: blocks per stage are {counts}, which is no ResNet known here", "download it again")
