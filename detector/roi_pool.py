"""RoIPool (Girshick 2015): the maximum of every cell of a grid laid over each box, as Caffe rounds them.

torchvision's operator is used wherever it is parallel. On a CPU it runs on one core and reads channels-first, which costs as much as
tens of convolutions; there the maxima come from a table instead. The numbers are the same, bit for bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_pool

TABLE_DEVICES = ("cpu",)
CPU_CHUNK = 16  # boxes at once: what res5 makes of them then stays in a CPU's caches …
CHUNK = 256  # … on a GPU it takes 400 MB at full size


def pooled_chunks(features: Tensor, boxes: Sequence[Tensor], size: int, scale: float) -> Iterator[Tensor]:
    """The boxes of many images pooled, in order, a chunk at a time.

    Args:
        features: (B, C, H, W), channels-last in memory.
        boxes: B tensors (R, 4), in pixels.
        size: S, cells a side.
        scale: cells of the feature map per pixel.

    Returns:
        (R', C, S, S) each, channels-last in memory, in the features' type.
    """
    if features.device.type in TABLE_DEVICES:
        for cells, of_image in zip(features.permute(0, 2, 3, 1), boxes, strict=True):
            if not len(of_image):
                continue
            rows = _windows(of_image[:, 1], of_image[:, 3], cells.shape[0], size, scale)
            columns = _windows(of_image[:, 0], of_image[:, 2], cells.shape[1], size, scale)
            maxima = range_maxima(cells, *(int((side[..., 1] - side[..., 0]).amax()) for side in (rows, columns)))
            for parts in zip(rows.split(CPU_CHUNK), columns.split(CPU_CHUNK), strict=True):
                yield maxima_over(maxima, *parts).permute(0, 3, 1, 2)
        return
    planes = features.float().contiguous()  # as the operator reads them; otherwise every chunk would make its own copy
    rois = torch.cat([F.pad(of_image, (1, 0), value=index) for index, of_image in enumerate(boxes)])
    for chunk in rois.split(CHUNK):
        pooled = roi_pool(planes, chunk, (size, size), scale)
        yield pooled.to(dtype=features.dtype, memory_format=torch.channels_last)


@dataclass(frozen=True)
class Maxima:
    """Maxima over the windows of 2^i x 2^j cells of one image's features, for small i and j."""

    rows: (
        Tensor  # (I J H W + 1, C): the window whose first cell is (y, x); means nothing where it does not fit; last, 0
    )
    shape: tuple[int, int, int, int]  # I, J, H, W


def range_maxima(cells: Tensor, tallest: int, widest: int) -> Maxima:
    """The table for cells (H, W, C) and windows of so many cells at most."""
    height, width, channels = cells.shape
    levels_y, levels_x = _level(tallest) + 1, _level(widest) + 1
    rows = cells.new_empty(levels_y * levels_x * height * width + 1, channels)
    rows[-1] = 0
    maxima = rows[:-1].view(levels_y, levels_x, height, width, channels)
    for i in range(levels_y):
        maxima[i, 0] = maxima[i - 1, 0] if i else cells
        if i:
            step = 1 << (i - 1)
            torch.maximum(maxima[i - 1, 0, :-step], maxima[i - 1, 0, step:], out=maxima[i, 0, :-step])
        for j in range(1, levels_x):
            step = 1 << (j - 1)
            maxima[i, j] = maxima[i, j - 1]
            torch.maximum(maxima[i, j - 1, :, :-step], maxima[i, j - 1, :, step:], out=maxima[i, j, :, :-step])
    return Maxima(rows, (levels_y, levels_x, height, width))


def maxima_over(maxima: Maxima, rows: Tensor, columns: Tensor) -> Tensor:
    """The maximum of every window of a grid: (R, S, S, C). Four of the table's windows, which overlap, cover any.

    Args:
        rows, columns: (R, S, 2) first cell, and the one after the last. A window of no cell gives 0.
    """
    _, levels_x, height, width = maxima.shape
    level_of = torch.tensor([_level(extent) for extent in range(max(height, width) + 1)])
    top, bottom, left, right = *rows.unbind(-1), *columns.unbind(-1)
    i, j = level_of[(bottom - top).clamp(min=0)], level_of[(right - left).clamp(min=0)]
    table = (i[:, :, None] * levels_x + j[:, None, :]) * height * width  # (R, S, S)
    empty = (bottom <= top)[:, :, None] | (right <= left)[:, None, :]
    corners = [
        (table + y[:, :, None] * width + x[:, None, :]).masked_fill(empty, len(maxima.rows) - 1)
        for y in (top, bottom - (1 << i))
        for x in (left, right - (1 << j))
    ]
    result = maxima.rows.index_select(0, corners[0].flatten())
    for corner in corners[1:]:
        torch.maximum(result, maxima.rows.index_select(0, corner.flatten()), out=result)
    return result.view(*empty.shape, maxima.rows.shape[1])


def _windows(low: Tensor, high: Tensor, limit: int, size: int, scale: float) -> Tensor:
    """Where the windows of boxes begin and end along one side: (R,), (R,) -> (R, S, 2)."""
    # C's round() takes halves away from zero, torch.round to even. In float64, where 0.5 can be added exactly.
    first, last = (torch.trunc(at + torch.copysign(at.new_tensor(0.5), at)) for at in
                   ((side * scale).double() for side in (low, high)))  # fmt: skip
    step = (last - first + 1).clamp(min=1).float()[:, None] / size  # float32, as the operator divides
    index = torch.arange(size)
    start = torch.floor(index * step).double() + first[:, None]
    end = torch.ceil((index + 1) * step).double() + first[:, None]
    return torch.stack([start, end], -1).clamp(0, limit).long()


def _level(extent: int) -> int:
    """The largest i for which 2^i cells fit."""
    return max(1, extent).bit_length() - 1
