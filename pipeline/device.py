"""Which device and which part of the work this process takes."""

import os

import torch
import torch.distributed as dist

from matcher.distributed import ProcessGroup
from pipeline.errors import PipelineError


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is this process's GPU where there is one, else the CPU.

    Raises:
        PipelineError: a device that this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
            if not local.isdecimal():
                raise PipelineError(f"LOCAL_RANK or SLURM_LOCALID is {local!r}: expected a number from 0")
            return torch.device("cuda", int(local) % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PipelineError(f"--device {name}: not available here ({reason})", "try --device cpu") from error
    return device


def process_share(part: str = "") -> tuple[int, int]:
    """Which process this is, of how many that torchrun or Slurm started: (0, 1) where neither did.

    Args:
        part: "INDEX/COUNT": all these processes together are one of so many jobs that share the work as well. Jobs of
            an array are not told apart without it: they may just as well have been given different folders.

    Raises:
        PipelineError: a rank or an index beyond the count.
    """
    job, separator, jobs = part.partition("/")
    if part and not (separator and job.isdigit() and jobs.isdigit() and int(job) < int(jobs)):
        raise PipelineError(f"share={part}: expected INDEX/COUNT with an index from 0, such as 0/4 … 3/4")
    # Not SLURM_NTASKS: a batch script has it as well, outside of srun, where there is only one process.
    names = ("RANK", "WORLD_SIZE") if "WORLD_SIZE" in os.environ else ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    values = [os.environ.get(name, default) for name, default in zip(names, ("0", "1"), strict=True)]
    if not all(value.isdecimal() for value in values) or int(values[0]) >= int(values[1]):
        raise PipelineError(
            f"{names[0]}={values[0]}, {names[1]}={values[1]}: expected a rank below the number of processes",
            f"unset {names[1]} where neither torchrun nor srun started this",
        )
    rank, processes = map(int, values)
    return (int(job) * processes + rank, int(jobs) * processes) if part else (rank, processes)


def join_processes(device: str) -> ProcessGroup:
    """Join the processes that torchrun started; one process where it did not."""
    torchrun = "WORLD_SIZE" in os.environ and process_share()[1] > 1
    if torchrun and not dist.is_initialized():
        picked = pick_device(device)
        if picked.type == "cuda":
            torch.cuda.set_device(picked)
        dist.init_process_group("nccl" if picked.type == "cuda" else "gloo")
    return ProcessGroup.current()
