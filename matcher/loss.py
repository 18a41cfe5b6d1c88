"""The hinge triplet loss with sum or hardest negatives (Lee et al., ECCV 2018, section 3.2; Faghri et al., VSE++, 2018).

Letters: N images, M captions.
"""

import torch
from torch import Tensor

from matcher.errors import MatcherError


def triplet_loss(similarity: Tensor, image_of_caption: Tensor, *, margin: float = 0.2, hardest: bool = True) -> Tensor:
    """Sum over the batch of both directions' hinges.

    similarity: (N, M), images as rows, larger is better.
    image_of_caption: (M,) integer, the row that each caption belongs to. Every (image, caption) pair it names is a
        positive; captions of one image are never each other's negatives. Images without a caption are negatives only.
    hardest: take each positive's worst negative; otherwise all of them (VSE0, also the usual warm-up).

    Returns a scalar. With one caption per image in the same order this is the published loss.
    """
    N, M = similarity.shape
    if image_of_caption.shape != (M,):
        raise MatcherError(
            f"image_of_caption has shape {tuple(image_of_caption.shape)}; expected ({M},), one per caption"
        )
    own = image_of_caption.to(similarity.device)
    captions = torch.arange(M, device=similarity.device)
    positives = similarity[own, captions]  # (M,)
    own_image = own == torch.arange(N, device=similarity.device)[:, None]  # (N, M)
    same_image = own[:, None] == own  # (M, M)

    # Caption retrieval: each positive against the captions of other images. Image retrieval: against other images.
    caption_cost = (margin + similarity[own] - positives[:, None]).clamp_min(0).masked_fill(same_image, 0)  # (M, M)
    image_cost = (margin + similarity - positives).clamp_min(0).masked_fill(own_image, 0)  # (N, M)
    if hardest:
        return caption_cost.amax(1).sum() + image_cost.amax(0).sum()
    return caption_cost.sum() + image_cost.sum()
