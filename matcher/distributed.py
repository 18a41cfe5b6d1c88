"""Several processes train on one batch: each encodes a part of it, and the loss is that of the full batch.

Images and captions of a batch are divided among the processes. Word embeddings are gathered, every process scores its
images against all captions, and the rows of the similarity are gathered. So negatives, the hardest included, come from
the full batch, and one process alone would compute the same loss and the same update.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a training, and which of them this is."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "ProcessGroup":
        """The group that torch.distributed was initialised with; one process where it was not."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def counts(self, items: int) -> list[int]:
        """How many of `items` items each process takes, in order of rank."""
        each, rest = divmod(items, self.size)
        return [each + (rank < rest) for rank in range(self.size)]

    def slice_of(self, items: int) -> slice:
        """Which of `items` items this process takes."""
        counts = self.counts(items)
        start = sum(counts[: self.rank])
        return slice(start, start + counts[self.rank])

    def wait(self) -> None:
        """Wait until every process gets here."""
        if self.size > 1:
            dist.barrier()

    def gather(self, own: Tensor, counts: list[int]) -> Tensor:
        """The rows of all processes, in order of rank, with gradients to their owners: (counts[rank], …) -> (sum, …)."""
        return own if self.size == 1 else _Gather.apply(own, counts, self.rank)

    def complete(self, own: Tensor, counts: list[int]) -> Tensor:
        """As `gather`, but only the own rows carry gradients: for a loss that every process computes in full."""
        if self.size == 1:
            return own
        parts = _all_gather(own.detach(), counts)
        parts[self.rank] = own
        return torch.cat(parts)

    def sum_gradients(self, model: nn.Module) -> None:
        """Sum every parameter's gradient over the processes, in one message."""
        if self.size == 1:
            return
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = parameters_to_vector(gradients)
        dist.all_reduce(flat)
        vector_to_parameters(flat, gradients)

    def same_start(self, model: nn.Module) -> None:
        """Copy the main process's parameters to all others."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)

    def gather_arrays(self, own: np.ndarray) -> np.ndarray:
        """The rows of all processes of an array, in order of rank."""
        if self.size == 1:
            return own
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, own)
        return np.concatenate(parts)


class _Gather(torch.autograd.Function):
    """Rows of all processes; backward, each owner gets the sum of all processes' gradients of its rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.counts, ctx.rank = counts, rank
        return torch.cat(_all_gather(own, counts))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.split(ctx.counts)[ctx.rank], None, None


def _all_gather(own: Tensor, counts: list[int]) -> list[Tensor]:
    """The rows of all processes; padded for the transfer, as messages must be of one size."""
    padded = own.new_zeros(max(counts), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]
