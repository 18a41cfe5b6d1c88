"""Photos -> Regions: the detector as users call it.

An image's regions depend on that image alone: images share a backbone pass only where their resized shapes are equal
(so nothing is padded), and the RoI head works proposal by proposal.

    stage pixels (pinned) -> upload -> backbone -> proposals -> RoI head -> download -> selection (on the host)

On a GPU nothing in between waits for it but the NMS of the proposals, once per image, which cannot know how many it keeps
before it has run; everything that leads up to it is launched for all images first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.boxes import apply_deltas, clip
from detector.errors import DetectorError
from detector.folding import PRECISIONS
from detector.locate import find_weights
from detector.model import FasterRCNN, Predictions
from detector.pending import Finished, Pending, RegionSource
from detector.preprocess import InputSettings, PreparedImage
from detector.regions import Regions
from detector.rewrite import for_inference
from detector.selection import Selected, select_caffe, select_maxclass
from detector.weights import Weights, load_weights
from detector.windows import pyramid

SELECTIONS = ("caffe", "maxclass", "windows")
INPUT_FIELDS = ("min_size", "max_size", "rpn_pre_nms", "rpn_post_nms", "rpn_nms_threshold", "rpn_min_size")


@dataclass(frozen=True)
class Candidates:
    """What selection looks at: the R proposals of one image, in the host's memory."""

    boxes: Tensor  # (R, 4) in pixels of the resized image: the proposals, under "maxclass" their best class's boxes
    features: Tensor  # (R, D)
    attribute_ids: Tensor  # (R,) best attribute; 0 where the network has none
    attribute_scores: Tensor  # (R,)
    class_probabilities: Tensor  # (R, C) without background; (R, 0) but under "caffe"
    object_ids: Tensor  # (R,) best class
    object_scores: Tensor  # (R,)


class RegionExtractor(RegionSource):
    """Finds the top regions of photos and their features.

    extractor = RegionExtractor.from_weights("frcnn-vg.safetensors")
    regions, = extractor([cv2.imread("photo.jpg")])
    regions.features  # (36, 2048)
    """

    def __init__(
        self,
        model: FasterRCNN,
        weights: Weights,
        *,
        selection: str = "caffe",
        num_regions: int = 36,
        device: torch.device | str | None = None,
        precision: str = "float32",
    ):
        if selection not in SELECTIONS:
            raise DetectorError(f"selection {selection!r}: expected one of {', '.join(SELECTIONS)}")
        if num_regions < 1:
            raise DetectorError(f"num_regions {num_regions}: expected at least 1")
        self.windows = torch.from_numpy(pyramid())  # as fractions of the photo, for selection "windows"
        if selection == "windows" and num_regions != len(self.windows):
            raise DetectorError(f"num_regions {num_regions}: selection windows has {len(self.windows)}")
        if precision not in PRECISIONS:
            raise DetectorError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = for_inference(model, PRECISIONS[precision])
        self.model.to(self.device).to(memory_format=torch.channels_last)
        self.precision = precision
        self.config = model.config
        self.selection = selection
        self.num_regions = num_regions
        self.feature_dim = self.config.feature_dim
        self.object_names = weights.object_names
        self.attribute_names = weights.attribute_names
        self.weights_sha256 = weights.sha256
        self.input_settings = InputSettings.of(self.config)

    @classmethod
    def from_weights(
        cls,
        path_or_name: str | Path | None = None,
        *,
        selection: str = "caffe",
        num_regions: int = 36,
        device: torch.device | str | None = None,
        precision: str = "float32",
        config_overrides: Mapping[str, Any] | None = None,
    ) -> "RegionExtractor":
        """Load a detector.

        Args:
            path_or_name: weights file of any known layout, or a hub name; None looks in the usual places.
            selection: "caffe" (what SCAN's features were made with), "maxclass" (airsplay, LXMERT), or "windows": 36 fixed
                places in the proposals' place, which no published features are made of.
            num_regions: K.
            device: None takes a GPU where there is one.
            precision: of the backbone and of res5: "float32", "bf16" or "fp16". Proposals, probabilities and the mean
                over a region's cells are float32 always. (On GPUs that have it, PyTorch convolves float32 in TF32 unless
                `torch.backends.cudnn.allow_tf32` is switched off; that is left as it is found.)
            config_overrides: fields of `DetectorConfig` that need no other weights, such as `min_size`.

        Raises:
            DetectorError: no weights, a file of no known layout, or overrides that the weights do not fit.
        """
        weights = load_weights(find_weights(None if path_or_name is None else str(path_or_name)))
        overrides = config_overrides or {}
        for key in overrides:
            if key not in INPUT_FIELDS:
                known = ", ".join(INPUT_FIELDS)
                raise DetectorError(f"detector.{key}: decided by the weights; expected one of {known}")
        model = FasterRCNN(replace(weights.config, **overrides))
        model.load_state_dict(weights.tensors)
        return cls(model, weights, selection=selection, num_regions=num_regions, device=device, precision=precision)

    def describe(self) -> dict[str, Any]:
        """Everything that decides what the features are, as JSON."""
        config = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.config).items()}
        return {
            "detector": config,
            "selection": self.selection,
            "num_regions": self.num_regions,
            "weights_sha256": self.weights_sha256,
            "precision": self.precision,
        }

    @torch.inference_mode()
    def launch(self, images: Sequence[PreparedImage]) -> Pending:
        """Start one batch of images of one resized shape. On a GPU the host can launch the next one meanwhile."""
        features = self.model.backbone(self._upload(images))["res4"]
        sizes = [image.pixels.shape[:2] for image in images]
        if self.selection == "windows":
            proposals = [self._windows(*size) for size in sizes]
        else:
            proposals = self.model.proposals(features, sizes, [min(image.scale) for image in images])
        if not all(map(len, proposals)):
            raise DetectorError("no proposal: the network's scores are not finite numbers", "use other weights")
        predictions = self.model.predict(features, proposals)
        candidates = list(map(self._candidates, proposals, predictions))
        if self.device.type == "cpu":
            return Finished(list(map(self._keep, images, candidates)))
        return _Launched(images, candidates, self._keep)

    def _windows(self, height: int, width: int) -> Tensor:
        """The windows of an image of that size, (36, 4) in its pixels, as the RPN's proposals are."""
        boxes = self.windows.to(self.device) * torch.tensor([width, height, width, height], device=self.device)
        return clip(boxes, height, width, self.model.offset)

    def _upload(self, images: Sequence[PreparedImage]) -> Tensor:
        """(B, 3, h, w) in the backbone's type: the pixels are channels-last already."""
        pixels = [torch.from_numpy(image.pixels) for image in images]
        pinned = self.device.type == "cuda"
        staged = torch.empty((len(pixels), *pixels[0].shape), pin_memory=pinned)
        torch.stack(pixels, out=staged)
        batch = staged.to(self.device, non_blocking=pinned).permute(0, 3, 1, 2)
        return batch.to(PRECISIONS[self.precision])

    def _candidates(self, proposals: Tensor, predictions: Predictions) -> Candidates:
        """What selection needs of one image, still on the device."""
        object_scores, object_ids = predictions.class_probabilities.max(1)
        boxes, probabilities = proposals, predictions.class_probabilities
        if self.selection == "maxclass":
            deltas = predictions.box_deltas.view(len(proposals), -1, 4)
            deltas = deltas.take_along_dim(object_ids[:, None, None], 1)[:, 0]
            boxes = apply_deltas(proposals, deltas, self.config.box_weights, self.model.offset)[:, 0]
        if self.selection != "caffe":
            probabilities = probabilities[:, :0]
        attributes = predictions.attribute_probabilities
        if attributes.shape[1]:
            attribute_scores, attribute_ids = attributes.max(1)
        else:
            attribute_scores, attribute_ids = torch.zeros_like(object_scores), torch.zeros_like(object_ids)
        return Candidates(
            boxes, predictions.features, attribute_ids, attribute_scores, probabilities, object_ids, object_scores
        )

    def _keep(self, image: PreparedImage, candidates: Candidates) -> Regions:
        """Selection, and boxes in pixels of the original image."""
        if self.selection == "caffe":
            y, x = image.scale
            original = candidates.boxes / candidates.boxes.new_tensor([x, y, x, y])
            selected = select_caffe(original, candidates.class_probabilities, self.num_regions)
            boxes = selected.boxes
        elif self.selection == "windows":
            height, width = image.image_size
            boxes = self.windows * torch.tensor([width, height, width, height])
            every = torch.arange(len(boxes))
            selected = Selected(every, boxes, candidates.object_ids, candidates.object_scores)
        else:
            height, width = image.pixels.shape[:2]
            scores, ids, offset = candidates.object_scores, candidates.object_ids, self.model.offset
            size = {"height": height, "width": width}
            selected = select_maxclass(candidates.boxes, scores, ids, self.num_regions, **size, offset=offset)
            x, y = image.image_size[1] / width, image.image_size[0] / height
            boxes = selected.boxes * selected.boxes.new_tensor([x, y, x, y])
        boxes = clip(boxes, *image.image_size, 0.0)  # a resized side is rounded: half a pixel may stand out
        rows = selected.proposals
        return Regions(
            boxes=boxes.numpy(),
            features=candidates.features[rows].numpy(),
            object_ids=selected.object_ids.numpy().astype(np.int32),
            object_scores=selected.object_scores.numpy(),
            attribute_ids=candidates.attribute_ids[rows].numpy().astype(np.int32),
            attribute_scores=candidates.attribute_scores[rows].numpy(),
            image_size=image.image_size,
        )


class _Launched:
    """A batch that a device works at; its candidates are on their way to the host's memory."""

    def __init__(
        self,
        images: Sequence[PreparedImage],
        candidates: Sequence[Candidates],
        select: Callable[[PreparedImage, Candidates], Regions],
    ):
        self.images, self.select = images, select
        self.candidates = [Candidates(*map(_to_host, vars(one).values())) for one in candidates]
        self.copied = torch.cuda.Event() if candidates[0].boxes.is_cuda else None
        if self.copied is not None:
            self.copied.record()

    def done(self) -> bool:
        return self.copied is None or self.copied.query()

    @torch.inference_mode()
    def result(self) -> list[Regions]:
        if self.copied is not None:
            self.copied.synchronize()
        return list(map(self.select, self.images, self.candidates))


def _to_host(tensor: Tensor) -> Tensor:
    """Its copy; of a CUDA tensor in pinned memory, and not waited for."""
    return tensor.to("cpu", non_blocking=tensor.is_cuda)
