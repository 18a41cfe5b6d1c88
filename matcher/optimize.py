"""How parameters change: the optimizer, its learning rate at each step, and the average of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from matcher.config import FitConfig
from matcher.loss import Temperature
from matcher.matcher import Matcher
from matcher.transformer import TransformerEncoder


def make_optimizer(model: Matcher, config: FitConfig, temperature: Temperature | None = None) -> torch.optim.Optimizer:
    """Adam or AdamW. A pretrained text encoder is a group of its own, with its share of the rate; a learned temperature is
    one without weight decay.
    """
    text = model.text_encoder
    pretrained = text.pretrained_parameters() if isinstance(text, TransformerEncoder) else set()
    groups = [
        {"params": [p for p in model.parameters() if p not in pretrained], "factor": 1.0},
        {"params": [p for p in model.parameters() if p in pretrained], "factor": config.text_encoder_factor},
        {"params": list(temperature.parameters()) if temperature else [], "factor": 1.0, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = model.device.type in ("cpu", "cuda")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)
    return torch.optim.Adam(groups, lr=config.learning_rate, fused=fused)


def rate_factor(config: FitConfig, step: int, steps_per_epoch: int) -> float:
    """What the learning rate of update `step` (from 0) is multiplied by.

    "step" multiplies by `decay_factor` after each of `decay_epochs`; "cosine" falls from one to zero over all epochs
    (Loshchilov and Hutter, SGDR, 2017, without restarts). Before that, it rises in a line over `learning_rate_warmup` steps.
    """
    warmup = config.learning_rate_warmup
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "cosine":
        progress = (step - warmup) / max(config.epochs * steps_per_epoch - warmup, 1)
        return (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    epoch = step // steps_per_epoch
    return float(config.decay_factor ** sum(epoch >= decay for decay in config.decay_epochs))


class WeightAverage:
    """Exponential moving average of a model's weights (Polyak and Juditsky, 1992; Tarvainen and Valpola, 2017).

    After update t the average keeps min(decay, (1 + t) / (10 + t)) of itself, so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after update `step` (from 1)."""
        kept = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self._tensors[name].lerp_(tensor, 1 - kept)
            else:
                self._tensors[name].copy_(tensor)

    @contextmanager
    def used_by(self, model: nn.Module) -> Iterator[None]:
        """The model has the averaged weights meanwhile, and its own again after that."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self._tensors)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """As of a module."""
        return self._tensors

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """As of a module."""
        for name, tensor in self._tensors.items():
            tensor.copy_(state[name])
