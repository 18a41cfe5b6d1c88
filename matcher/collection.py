"""Similarity of a split: images read and encoded block by block, captions encoded once, memory bounded by a budget.

Letters: N images, M captions, K regions, L words, E joint space.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from matcher.data import CaptionedImages
from matcher.model import SCAN
from matcher.similarity import (
    MEMORY_BUDGET,
    CaptionBlock,
    Options,
    block_size,
    fill_similarity,
    result_array,
    split_by_words,
)

ENCODE_CAPTIONS = 256  # captions per pass of the text encoder


@torch.inference_mode()
def collection_similarity(
    model: SCAN,
    data: CaptionedImages,
    *,
    images: slice = slice(None),
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = False,
) -> np.ndarray:
    """Similarity of every image to every caption of a split: (N, M) float32.

    Args:
        model: in evaluation mode.
        data: its images are read from their source block by block; `image_of_caption` is not used.
        images: only these.
        memory_budget: bytes for word embeddings and blocks. Where the word embeddings alone would take more than half of
            it, the images are gone through several times.
        progress: show a bar.
    """
    rows = data.rows[images]
    N, M = len(rows), len(data.captions)
    out = result_array(N, M, memory_budget)
    if not N or not M:
        return out
    regions = _EncodedImages(model, data, rows)
    # Encoding holds the features and a few copies of the embeddings at once.
    bytes_per_region = 4 * (data.source.feature_dim + 4 * model.config.embed_dim)
    image_block, words_of_block = block_size(
        N, data.source.num_regions, bytes_per_region, memory_budget // 2, model.device
    )
    lengths = torch.tensor([len(model.vocabulary.encode(caption)) for caption in data.captions])
    order = torch.argsort(lengths, stable=True)
    words_of_pass = max(1, memory_budget // 2 // (4 * model.config.embed_dim))
    passes = split_by_words(order, lengths[order], words_of_pass)
    with tqdm(total=N * len(passes), unit="image", desc="similarity", disable=not progress, leave=False) as bar:
        for captions in passes:
            blocks = [
                block
                for run in split_by_words(captions, lengths[captions], words_of_block)
                for block in _encode(model, data.captions, run)
            ]
            fill_similarity(out, regions, blocks, Options(**model.similarity_options()), image_block, bar)
    return out


class _EncodedImages:
    """Region embeddings of a split's images, read and encoded when they are asked for."""

    def __init__(self, model: SCAN, data: CaptionedImages, rows: np.ndarray):
        self.model, self.data, self.rows = model, data, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, images: slice) -> Tensor:
        features = torch.from_numpy(self.data.source.gather(self.rows[images]))
        return self.model.encode_images(features.to(self.model.device).float())


def _encode(model: SCAN, captions: Sequence[str], columns: Tensor) -> list[CaptionBlock]:
    """Word embeddings of some captions, packed, a few hundred captions at a time."""
    blocks = []
    for some in columns.split(ENCODE_CAPTIONS):
        words, lengths = model.encode_captions([captions[index] for index in some.tolist()])
        blocks.append(CaptionBlock.of(words, lengths, torch.arange(len(some)), some))
    return blocks
