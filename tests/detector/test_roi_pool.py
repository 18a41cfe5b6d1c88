"""Our RoIPool for CPUs against torchvision's operator: equal, not close."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_pool

from detector.roi_pool import pooled_chunks

side = st.one_of(
    st.integers(-40, 700).map(float), st.floats(-40, 700, width=32), st.integers(0, 60).map(lambda n: n * 8.0)
)


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.lists(st.tuples(side, side, side, side), min_size=1, max_size=40),
    st.sampled_from([1, 3, 7, 14]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=150, deadline=None)
def test_every_box_is_pooled_as_torchvision_does(
    shape: tuple[int, int], corners: list[tuple[float, float, float, float]], size: int, dtype: torch.dtype
) -> None:
    features = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    first = torch.tensor(corners, dtype=torch.float32)
    second = first.flip(0) + 0.5
    found = torch.cat(list(pooled_chunks(features, [first, second], size, 1 / 16)))
    wanted = roi_pool(features.float(), [first, second], (size, size), 1 / 16)
    assert found.dtype == dtype
    assert torch.equal(found.float(), wanted)


@pytest.mark.parametrize("count", [0, 1, 16, 17])
def test_chunks_come_in_order_and_channels_last(count: int) -> None:
    features = torch.randn(1, 8, 20, 30).contiguous(memory_format=torch.channels_last)
    corners = torch.rand(count, 2) * 200
    boxes = torch.cat([corners, corners + 60], 1)
    chunks = list(pooled_chunks(features, [boxes], 14, 1 / 16))
    assert all(chunk.is_contiguous(memory_format=torch.channels_last) for chunk in chunks)
    assert sum(map(len, chunks)) == count


def test_no_box_is_no_work() -> None:
    assert list(pooled_chunks(torch.randn(0, 3, 5, 5), [], 7, 1 / 16)) == []
