"""Evaluating a detector with detectron2's loop: COCO's AP and the published mAP@.5 (see `detector.training.metrics`)."""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from detector.detectron2_compat import detectron2_ready
from detector.training.data import DetectionData, Record, RecordReader
from detector.training.metrics import PER_IMAGE, ClassDetections
from detector.training.model import TrainableDetector
from detector.vocabulary import multi_hot

with detectron2_ready():
    from detectron2.data import MetadataCatalog, build_detection_test_loader
    from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators, inference_on_dataset
    from detectron2.utils import comm

DATASET = "scan-pipeline-evaluation"  # its name in detectron2's catalog


class VisualGenomeEvaluator(DatasetEvaluator):
    """mAP@.5 of objects and attributes."""

    def __init__(self, records: Sequence[Record], num_objects: int, num_attributes: int):
        self.records = {record["image_id"]: record for record in records}
        self.sizes = {"objects": num_objects, "attributes": num_attributes}
        self.reset()

    def reset(self) -> None:
        self.found = {kind: ClassDetections(size) for kind, size in self.sizes.items() if size}

    def process(self, inputs: Sequence[Record], outputs: Sequence[Mapping[str, Any]]) -> None:
        for given, output in zip(inputs, outputs, strict=True):
            record = self.records[given["image_id"]]
            boxes, instances = record["boxes"], output["instances"]
            self.found["objects"].add(
                instances.pred_boxes.tensor.cpu().numpy(),
                instances.pred_classes.cpu().numpy(),
                instances.scores.float().cpu().numpy(),
                boxes,
                record["classes"],
            )
            if "attributes" in self.found:
                attributes = multi_hot(record["attributes"], self.sizes["attributes"])
                self._add_attributes(boxes, attributes, output["attribute_scores"].float().cpu())

    def _add_attributes(self, boxes: np.ndarray, attributes: np.ndarray, scores: torch.Tensor) -> None:
        """The best (box, attribute) pairs of an image: (G, 4), (G, T) bool, (G, T)."""
        top, places = scores.flatten().topk(min(PER_IMAGE, scores.numel()))
        rows, kinds = np.divmod(places.numpy(), max(scores.shape[1], 1))
        true_rows, true_kinds = np.nonzero(attributes)
        self.found["attributes"].add(boxes[rows], kinds, top.numpy(), boxes[true_rows], true_kinds)

    def evaluate(self) -> dict[str, dict[str, float]]:
        comm.synchronize()
        parts = comm.gather(self.found)
        if not comm.is_main_process():
            return {}
        return {kind: self.found[kind].merged([part[kind] for part in parts[1:]]).summary() for kind in self.found}


def evaluate_detector(
    model: TrainableDetector, data: DetectionData, reader: RecordReader, folder: Path, *, workers: int, progress: bool
) -> dict[str, dict[str, float]]:
    """AP of a detector on the images held out. The folder gets the true boxes in COCO's format, `evaluation_instances.json`.

    Returns:
        Percentages: `bbox` (COCO's AP, AP50, AP75, …), `objects` and `attributes` (mAP50, mAP50_weighted, mAP50_seen).
    """
    truth, names = folder / "evaluation_instances.json", list(data.object_names)
    if comm.is_main_process():
        truth.write_text(json.dumps(coco_instances(data.evaluation, names)))
    comm.synchronize()
    MetadataCatalog.pop(DATASET, None)
    MetadataCatalog.get(DATASET).set(json_file=str(truth), thing_classes=names)
    loader = build_detection_test_loader(list(data.evaluation), mapper=reader, num_workers=workers)
    show = progress and comm.is_main_process()
    bar = tqdm(loader, desc="evaluation", unit="photo", disable=not show, leave=False)
    with contextlib.redirect_stdout(io.StringIO()):  # the COCO tools print their progress
        evaluators = [
            COCOEvaluator(DATASET, ("bbox",), distributed=comm.get_world_size() > 1, use_fast_impl=False),
            VisualGenomeEvaluator(data.evaluation, len(names), model.model.config.num_attributes),
        ]
        found = inference_on_dataset(model, bar, DatasetEvaluators(evaluators))
    results = {kind: dict(values) for kind, values in (found or {}).items()}
    if "bbox" in results:
        results["bbox"] = _summary(results["bbox"])
    return results


def _summary(found: Mapping[str, float]) -> dict[str, float]:
    """COCO's numbers without the table of every class, and without those of sizes that no true box has.

    Its tools call the AP of a detector that finds nothing at all undefined; it is 0.
    """
    kept = {name: value for name, value in found.items() if not name.startswith("AP-") and np.isfinite(value)}
    return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0} | kept


def coco_instances(records: Sequence[Record], object_names: Sequence[str]) -> dict[str, Any]:
    """Records in COCO's instances format, class ids as they are."""
    annotations: list[dict[str, Any]] = []
    for record in records:
        for (x1, y1, x2, y2), category in zip(record["boxes"].tolist(), record["classes"].tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record["image_id"],
                    "category_id": category,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    return {
        "info": {},
        "images": [
            {"id": record["image_id"], "height": record["height"], "width": record["width"]} for record in records
        ],
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for index, name in enumerate(object_names)],
    }
