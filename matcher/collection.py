"""Similarity of whole collections: every image encoded once, every caption encoded once, blocks that bound the memory.

Letters: N images, M captions, K regions, L words, E joint space.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from matcher.data import CaptionedImages
from matcher.model import SCAN

SCORES_BUDGET = 8_000_000  # word x region products of a block: 32 MB, and a few times that in temporaries
IMAGE_BLOCK = 64  # images encoded and compared at once
ENCODE_CAPTIONS = 1024  # captions per pass of the text encoder


@torch.inference_mode()
def collection_similarity(model: SCAN, data: CaptionedImages, *, progress: bool = False) -> np.ndarray:
    """Similarity of every image to every caption of a split: (N, M) float32.

    Args:
        model: in evaluation mode.
        data: its images are read from their source block by block; `image_of_caption` is not used.
        progress: show a bar.
    """
    blocks = list(_encode_captions(model, data.captions, data.source.num_regions))
    similarity = np.empty((len(data.rows), len(data.captions)), dtype=np.float32)
    with tqdm(total=len(data.rows), unit="image", desc="similarity", disable=not progress, leave=False) as bar:
        for start in range(0, len(data.rows), IMAGE_BLOCK):
            rows = data.rows[start : start + IMAGE_BLOCK]
            features = torch.from_numpy(data.source.gather(rows)).to(model.device).float()
            regions = model.encode_images(features)  # (n, K, E)
            for captions, words, lengths in blocks:
                similarity[start : start + len(rows), captions] = (
                    model.similarity(regions, words, lengths).cpu().numpy()
                )
            bar.update(len(rows))
    return similarity


def _encode_captions(
    model: SCAN, captions: Sequence[str], num_regions: int
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Captions of like length together: their indices, word embeddings (m, L, E) and lengths (m,).

    Blocks are cut so that a block of images against one of them stays within the budget.
    """
    if not captions:
        return
    budget = SCORES_BUDGET // (IMAGE_BLOCK * num_regions)  # words
    sizes = np.array([len(model.vocabulary.encode(caption)) for caption in captions])
    order = np.argsort(sizes, kind="stable")
    for start in range(0, len(order), ENCODE_CAPTIONS):
        chunk = order[start : start + ENCODE_CAPTIONS]
        words, lengths = model.encode_captions([captions[index] for index in chunk])
        step = max(1, budget // int(lengths.max()))
        for first in range(0, len(chunk), step):
            some = slice(first, first + step)
            yield chunk[some], words[some, : int(lengths[some].max())], lengths[some]
