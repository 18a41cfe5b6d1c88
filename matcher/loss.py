"""Losses of a batch, over both directions of retrieval.

- Hinge with sum or hardest negatives (Lee et al., ECCV 2018, section 3.2; Faghri et al., VSE++, 2018).
- InfoNCE: softmax over the batch with a learned temperature (Oord et al., 2018; Radford et al., CLIP, 2021).

Letters: N images, M captions.
"""

import math

import torch
from torch import Tensor, nn

from matcher.errors import MatcherError

LARGEST_SCALE = 100.0  # CLIP's: a temperature of 0.01


def triplet_loss(similarity: Tensor, image_of_caption: Tensor, *, margin: float = 0.2, hardest: bool = True) -> Tensor:
    """Sum over the batch of both directions' hinges.

    similarity: (N, M), images as rows, larger is better.
    image_of_caption: (M,) integer, the row that each caption belongs to. Every (image, caption) pair it names is a
        positive; captions of one image are never each other's negatives. Images without a caption are negatives only.
    hardest: take each positive's worst negative; otherwise all of them (VSE0, also the usual warm-up).

    Returns a scalar. With one caption per image in the same order this is the published loss.
    """
    own, positives, same_image = _pairs(similarity, image_of_caption)
    own_image = own == torch.arange(len(similarity), device=similarity.device)[:, None]  # (N, M)

    # Caption retrieval: each positive against the captions of other images. Image retrieval: against other images.
    caption_cost = (margin + similarity[own] - positives[:, None]).clamp_min(0).masked_fill(same_image, 0)  # (M, M)
    image_cost = (margin + similarity - positives).clamp_min(0).masked_fill(own_image, 0)  # (N, M)
    if hardest:
        return caption_cost.amax(1).sum() + image_cost.amax(0).sum()
    return caption_cost.sum() + image_cost.sum()


def infonce_loss(similarity: Tensor, image_of_caption: Tensor, *, scale: Tensor | float) -> Tensor:
    """Mean over captions and both directions of -log softmax(scale * similarity) at the positive.

    similarity, image_of_caption: as of `triplet_loss`; other captions of the same image take no part in a caption's softmax.
    scale: scalar, one over the temperature.

    Returns a scalar.
    """
    logits = scale * similarity
    own, positives, same_image = _pairs(logits, image_of_caption)
    others = same_image & ~torch.eye(len(own), dtype=torch.bool, device=logits.device)  # (M, M)
    over_captions = logits[own].masked_fill(others, -torch.inf).logsumexp(1)  # (M,)
    over_images = logits.logsumexp(0)  # (M,)
    return ((over_captions + over_images) / 2 - positives).mean()


class Temperature(nn.Module):
    """InfoNCE's temperature, learned as the logarithm of its inverse."""

    def __init__(self, start: float):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(start)))

    def scale(self) -> Tensor:
        """One over the temperature, a scalar."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """After an update: keep the scale from 1 to 100, as CLIP does, so that no gradient overflows."""
        self.log_scale.clamp_(0, math.log(LARGEST_SCALE))


def _pairs(similarity: Tensor, image_of_caption: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The row of each caption (M,), the similarity of each positive (M,), and which captions share an image (M, M)."""
    M = similarity.shape[1]
    if image_of_caption.shape != (M,):
        raise MatcherError(
            f"image_of_caption has shape {tuple(image_of_caption.shape)}; expected ({M},), one per caption"
        )
    own = image_of_caption.to(similarity.device)
    return own, similarity[own, torch.arange(M, device=similarity.device)], own[:, None] == own
