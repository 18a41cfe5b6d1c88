"""What networks that are not trained any more share: their types, and convolutions that take in the norm behind them."""

from typing import Any

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_weights

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def fold_norm(conv: nn.Conv2d, norm: Any) -> None:
    """Fold a norm of fixed statistics (BatchNorm2d, FrozenBatchNorm2d) into the convolution before it, in place.

    The arithmetic is in float64: what is left is one rounding of each weight to float32.
    """
    bias = None if conv.bias is None else conv.bias.double()
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(), bias, mean, variance, norm.eps, norm.weight.double(), norm.bias.double()
    )
    conv.weight = nn.Parameter(weight.detach().float(), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
