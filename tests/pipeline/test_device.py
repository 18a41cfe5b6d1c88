"""Which part of the work is this process's, and which device: torchrun, srun, arrays, and combinations of them."""

import pytest
import torch

from pipeline.device import join_processes, pick_device, process_share
from pipeline.errors import PipelineError

NAMES = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"]


def set_environment(patch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name in NAMES:
        patch.delenv(name, raising=False)
    for name, value in values.items():
        patch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "16", "SLURM_NTASKS": "16"}, (5, 16)),
        # sbatch's own script, outside of srun: one process, whatever was allocated
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, (0, 1)),
        # srun starts one torchrun a machine: torchrun's numbers count
        ({"RANK": "9", "WORLD_SIZE": "16", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (9, 16)),
    ],
)
def test_who_am_i(monkeypatch: pytest.MonkeyPatch, environment: dict, expected: tuple[int, int]) -> None:
    set_environment(monkeypatch, environment)
    assert process_share() == expected


def test_jobs_of_an_array_share_when_they_are_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for job in range(3):
        for task in range(4):
            set_environment(
                monkeypatch,
                {"SLURM_ARRAY_TASK_ID": str(job), "SLURM_PROCID": str(task), "SLURM_STEP_NUM_TASKS": "4"},
            )
            assert process_share() == (task, 4)
            found.append(process_share(f"{job}/3"))
    assert sorted(found) == [(index, 12) for index in range(12)]


@pytest.mark.parametrize("part", ["3/3", "1", "a/b", "-1/2", "0/0", "/"])
def test_parts_that_are_none(part: str) -> None:
    with pytest.raises(PipelineError, match=f"share={part}: expected INDEX/COUNT with an index from 0"):
        process_share(part)


@pytest.mark.parametrize(
    ("environment", "gpus", "expected"),
    [
        ({}, 4, 0),
        ({"LOCAL_RANK": "3"}, 4, 3),
        ({"SLURM_LOCALID": "2"}, 4, 2),
        ({"SLURM_LOCALID": "3"}, 1, 0),  # srun --gpus-per-task 1: each task sees its own GPU alone, as number 0
        ({"SLURM_LOCALID": "5"}, 2, 1),  # more tasks than GPUs take turns
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, 2, 1),  # torchrun under srun
    ],
)
def test_every_process_has_a_gpu(monkeypatch: pytest.MonkeyPatch, environment: dict, gpus: int, expected: int) -> None:
    set_environment(monkeypatch, environment)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert pick_device("auto") == torch.device("cuda", expected)


@pytest.mark.parametrize("name", ["meta", "vulkan", "xla", "cuda:99", "nonsense", "cpu:-3", "mps:2", "hpu", ""])
def test_devices_that_are_not_here(name: str) -> None:
    with pytest.raises(PipelineError, match=f"--device {name}: not available here") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "abc"},
        {"WORLD_SIZE": "-1"},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": "2", "RANK": "two"},
        {"WORLD_SIZE": "²"},
    ],
)
def test_numbers_of_processes_that_are_none(monkeypatch: pytest.MonkeyPatch, environment: dict) -> None:
    set_environment(monkeypatch, environment)
    with pytest.raises(PipelineError, match="expected a rank below the number of processes; unset WORLD_SIZE"):
        join_processes("cpu")
