"""COCO's test images judged by more right answers than their captions know: ECCV Caption and CxC, by the package eccv_caption."""

import importlib.util
import json
from collections.abc import Sequence
from importlib import resources

import numpy as np

from matcher.metrics import best_columns
from pipeline.errors import PipelineError

RANKED = 1000  # more than any query of ECCV Caption has right answers


def eccv_caption(
    similarity: np.ndarray, image_ids: Sequence[int | str], caption_ids: Sequence[int | str]
) -> dict[str, dict[str, float]]:
    """ECCV Caption (Chun et al., ECCV 2022), CxC and COCO 5K of COCO's test images: {metric: {"i2t": …, "t2i": …}}.

    Args:
        similarity: (N, M).
        image_ids, caption_ids: COCO's own integers, in the order of rows and columns.

    Raises:
        PipelineError: the package is not installed, or these are not COCO's 5,000 test images.
    """
    check_eccv(image_ids, caption_ids)
    from eccv_caption import Metrics

    captions, images = best_columns(similarity, RANKED), best_columns(similarity.T, RANKED)
    found = Metrics().compute_all_metrics(
        {image: [caption_ids[m] for m in row] for image, row in zip(image_ids, captions, strict=True)},
        {caption: [image_ids[n] for n in row] for caption, row in zip(caption_ids, images, strict=True)},
        target_metrics=("eccv_r1", "eccv_map_at_r", "eccv_rprecision", "coco_5k_recalls", "cxc_recalls"),
        Ks=(1, 5, 10),
    )
    return {metric: {task: float(value) for task, value in values.items()} for metric, values in found.items()}


def eccv_text(metrics: dict[str, dict[str, float]]) -> str:
    """A line a metric."""
    lines = [
        f"  {metric:18} caption retrieval {values['i2t']:6.2%}   image retrieval {values['t2i']:6.2%}"
        for metric, values in metrics.items()
    ]
    return "\n".join(["ECCV Caption, CxC and COCO 5K (package eccv_caption):", *lines])


def check_eccv(image_ids: Sequence[int | str], caption_ids: Sequence[int | str]) -> None:
    """Refuse other images and captions than those that the package judges."""
    if importlib.util.find_spec("eccv_caption") is None:
        raise PipelineError("--eccv: needs the package eccv_caption", "pip install 'scan-pipeline[eccv]'")
    listed = resources.files("eccv_caption") / "data/original_image_to_caption.json"
    truth = {int(image): captions for image, captions in json.loads(listed.read_text()).items()}
    found = len(truth.keys() & set(image_ids)), len({c for own in truth.values() for c in own} & set(caption_ids))
    if found != (len(truth), sum(map(len, truth.values()))) or len(image_ids) != len(truth):
        raise PipelineError(
            f"--eccv: of {len(image_ids):,} images and {len(caption_ids):,} captions {found[0]:,} and {found[1]:,} have an id "
            "of the test split; expected COCO's 5,000 test images of the Karpathy split, with their ids"
        )
