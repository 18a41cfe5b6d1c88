"""The same network, rewritten so that less is computed. Done on a copy when a detector is built, never to saved weights.

Both rewrites are exact in real numbers; in float32 they change the order of a few sums (see `tests/detector/test_rewrite.py`
for the bounds).
"""

import copy

import torch
from torch import Tensor, nn

from detector.detectron2_compat import detectron2_ready
from detector.folding import fold_norm
from detector.model import FasterRCNN

with detectron2_ready():
    from detectron2.layers import Conv2d, FrozenBatchNorm2d


def for_inference(model: FasterRCNN, dtype: torch.dtype = torch.float32) -> FasterRCNN:
    """A copy of a detector that gives the same regions faster, and cannot be trained.

    Args:
        model: of float32 weights.
        dtype: of the backbone and of res5, where 97 % of the work is. All that decides on boxes and classes, from small
            differences of scores, stays in float32.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(model)
    model.backbone.to(dtype)
    model.roi_heads.res5.to(dtype)
    dilation = model.config.res5_dilation
    if dilation > 1 and model.config.bottleneck and model.config.pooled_size % dilation == 0:
        model.roi_heads.res5 = UndilatedStage(model.roi_heads.res5, dilation)
    return model


def fold_norms(model: nn.Module) -> None:
    """Replace, in place, every convolution and its norm of fixed statistics by one convolution with a bias."""
    for module in model.modules():
        if isinstance(module, Conv2d) and isinstance(module.norm, FrozenBatchNorm2d | nn.BatchNorm2d):
            fold_norm(module, module.norm)
            module.norm = None


class UndilatedStage(nn.Sequential):
    """A stage of stride 1 whose 3x3 convolutions are dilated by d, computed without dilation.

    Such a convolution never mixes rows, or columns, of different remainder modulo d: a map of S x S cells is d² maps
    of S/d x S/d, and on each of them the convolution is an ordinary one, for which libraries have much faster code
    (1.5 times on a CPU with AVX2). 1x1 convolutions do not care which map a cell is on.
    """

    def __init__(self, stage: nn.Sequential, dilation: int):
        super().__init__(*stage)
        self.step = dilation
        for module in self.modules():
            if isinstance(module, Conv2d) and module.dilation[0] == dilation:
                module.dilation, module.padding = (1, 1), (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, S, S) -> (R, D, S, S), the cells in another order: for what pools over all of them."""
        count, channels, size, _ = x.shape
        step, part = self.step, size // self.step
        cells = x.permute(0, 2, 3, 1).view(count, part, step, part, step, channels)
        cells = cells.permute(0, 2, 4, 1, 3, 5).reshape(-1, part, part, channels)  # (R d², S/d, S/d, C)
        out = super().forward(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out.reshape(count, size, size, -1).permute(0, 3, 1, 2)
