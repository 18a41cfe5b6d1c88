"""The starter's windows against its bare network: seconds a photo, and their ratio.

    python -m tests.benchmarks.windows [--repetitions N]

From resized pixels to regions, in one thread, against timm's own network up to its feature map on a photo of the same size. They
take turns, and the best of several repetitions counts.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from detector.windows import LITE0, WindowExtractor, load_network
from tests.benchmarks.similarity import fastest

GOAL = 1.2  # ours / bare, at most


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> float:
    """Print the times; returns the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=20)
    repetitions = parser.parse_args(arguments).repetitions
    torch.set_num_threads(1)
    extractor = WindowExtractor(device="cpu")
    bare = load_network(LITE0).to(memory_format=torch.channels_last)
    photo = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    image = extractor.prepare(photo)
    pixels = torch.from_numpy(image.pixels).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
    times = fastest(
        {
            "windows": lambda: extractor([image]),
            "bare network": lambda: bare.forward_features(pixels),
            "resize": lambda: extractor.prepare(photo),
        },
        repetitions,
    )
    for name, seconds in times.items():
        print(f"{name:14} {seconds * 1e3:6.1f} ms a photo")
    ratio = times["windows"] / times["bare network"]
    print(f"windows / bare network: {ratio:.2f} (goal: at most {GOAL})")
    return ratio


if __name__ == "__main__":
    main()
