"""Whether the installed torch writes out of bounds on this CPU, and that a training does not meet it.

Each program runs in its own process, as the fault ends it. Seen with torch 2.14.1 (oneDNN 3.12) on CPUs with AVX-512: a 1x1
convolution of stride 2 with fewer than 16 input channels, channels-last, of images that the threads do not share evenly.
"""

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from detector.config import DetectorConfig, DetectorFitConfig
from detector.training.fit import build

REPLAY = """
import torch
torch.set_num_threads(2)
convolution = torch.nn.Conv2d(8, 16, 1, stride=2, bias=False).to(memory_format=torch.channels_last)
for _ in range(20):
    pixels = torch.randn(3, 8, 16, 22).contiguous(memory_format=torch.channels_last).requires_grad_()
    convolution(pixels).sum().backward()
"""
TRAINING = """
import torch
from detector.config import DetectorConfig, DetectorFitConfig
from detector.training.fit import build
torch.set_num_threads(2)
recipe = DetectorFitConfig(norm="BN", frozen_stages=0)
model = build(DetectorConfig(depth=18, width=8, num_objects=3, num_attributes=0), recipe, None).train()
for _ in range(20):
    pixels = torch.randn(3, 3, 64, 88).contiguous(memory_format=torch.channels_last)
    model.model.backbone(pixels)["res4"].sum().backward()
"""


def run(program: str) -> int:
    """Exit status of a Python program with two threads; negative: the signal that ended it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, timeout=300)
    assert result.returncode <= 0, result.stderr.decode()
    return result.returncode


def test_the_installed_torch_convolves_within_bounds() -> None:
    status = run(REPLAY)
    if status:
        name = signal.Signals(-status).name
        pytest.xfail(f"torch {torch.__version__} ends with {name} in narrow strided convolutions on this CPU")


def test_a_narrow_network_trains_on_any_cpu() -> None:
    assert run(TRAINING) == 0


@pytest.mark.parametrize("depth", [18, 50])
def test_narrow_strided_convolutions_give_the_same_numbers(depth: int) -> None:
    torch.manual_seed(0)
    recipe = DetectorFitConfig(norm="BN", frozen_stages=0)
    config = DetectorConfig(depth=depth, width=2, num_objects=3, num_attributes=0)
    rewritten = build(config, recipe, None).eval().model
    assert not [
        module
        for module in rewritten.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1)
        and module.in_channels < 16
    ]  # fmt: skip
    plain = type(rewritten)(config, recipe.norm).eval()
    plain.load_state_dict(rewritten.state_dict())
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(rewritten.backbone(pixels)["res4"], plain.backbone(pixels)["res4"])
