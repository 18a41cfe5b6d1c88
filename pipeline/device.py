"""Choosing the device that work runs on, and joining the processes that share it."""

import os

import torch
import torch.distributed as dist

from matcher.distributed import World
from pipeline.errors import PipelineError


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is this process's GPU where there is one, else the CPU.

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


def join_processes(device: str) -> World:
    """Meet the other processes that torchrun started; one process where there are none."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        picked = pick_device(device)
        if picked.type == "cuda":
            torch.cuda.set_device(picked)
        dist.init_process_group("nccl" if picked.type == "cuda" else "gloo")
    return World.current()
