"""Choosing the device that work runs on."""

import os

import torch

from pipeline.errors import PipelineError


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU where there is one, else the CPU.

    Raises:
        PipelineError: a device that this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PipelineError(
            f"--device {name}: not available here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return device
