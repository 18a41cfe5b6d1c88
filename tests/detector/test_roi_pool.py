"""RoIPool of many images, chunk by chunk, against torchvision's operator on all boxes at once: equal, not close."""

import pytest
import torch
from torchvision.ops import roi_pool

from detector.model import pooled_chunks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [(0, 0), (1, 17), (16, 0), (33, 5)])
def test_chunks_come_in_order_and_channels_last(counts: tuple[int, int], dtype: torch.dtype) -> None:
    features = torch.randn(2, 8, 20, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    features = features.contiguous(memory_format=torch.channels_last)
    corners = [torch.rand(count, 2) * 200 for count in counts]
    boxes = [torch.cat([corner, corner + 60], 1) for corner in corners]
    chunks = list(pooled_chunks(features, boxes, 14, 1 / 16))
    assert all(map(len, chunks))
    assert all(chunk.is_contiguous(memory_format=torch.channels_last) for chunk in chunks)
    assert all(chunk.dtype == dtype for chunk in chunks)
    found = torch.cat([torch.zeros(0, 8, 14, 14), *(chunk.float() for chunk in chunks)])
    assert torch.equal(found, roi_pool(features.float(), boxes, (14, 14), 1 / 16))


def test_no_box_is_no_work() -> None:
    assert list(pooled_chunks(torch.randn(0, 3, 5, 5), [], 7, 1 / 16)) == []
