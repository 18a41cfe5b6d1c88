"""Similarity and training step against the paper's per-caption loop, and against the bare matrix product.

    python -m tests.benchmarks.similarity

D = 1024, 36 regions, 128 images x 128 captions of COCO-like lengths, float32, all cores. Every line compares times of
one run: the best of several repetitions each, the alternatives taking turns.
"""

import resource
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from matcher.collection import collection_similarity
from matcher.config import ModelConfig
from matcher.data import CaptionedImages
from matcher.loss import triplet_loss
from matcher.methods import METHODS, make_matcher
from matcher.scan import SCAN
from matcher.similarity import PaddedWords
from matcher.vocabulary import SPECIAL, Vocabulary
from tests.paper_loop import cross_attention_similarity, paper_similarity
from tests.toy import ArraySource

B, K, D, FEATURES = 128, 36, 1024, 2048
OPTIONS = {
    "t2i": {"normalization": "clipped_l2norm", "pooling": "LogSumExp", "softmax_temperature": 9.0, "lse_temperature": 6.0},
    "i2t": {"normalization": "clipped_l2norm", "pooling": "LogSumExp", "softmax_temperature": 4.0, "lse_temperature": 20.0},
}  # fmt: skip


def coco_lengths(count: int, seed: int = 0) -> torch.Tensor:
    """Words per caption as in COCO, start and end included: 12 or 13 mostly, now and then twice that."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy((9 + rng.gamma(2.2, 1.6, count)).astype(np.int64).clip(8, 30))


def fastest(functions: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Best time of each in seconds, taking turns so that a slow moment of the machine hits all."""
    times = {name: float("inf") for name in functions}
    for _ in range(repetitions):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            times[name] = min(times[name], time.perf_counter() - started)
    return times


def report(what: str, times: dict[str, float], against: str, goal: float) -> None:
    rest = ", ".join(f"{name} {seconds * 1e3:,.0f} ms" for name, seconds in times.items())
    print(f"{what:24} {times[against] / times['ours']:5.1f} x the {against} (goal {goal:g})   {rest}", flush=True)


def bench_scoring(attention: str, goal: float) -> None:
    regions = torch.nn.functional.normalize(torch.randn(B, K, D), dim=-1)
    lengths = coco_lengths(B)
    words = torch.nn.functional.normalize(torch.randn(B, int(lengths.max()), D), dim=-1)
    options = {"attention": attention, **OPTIONS[attention]}
    flat_words, flat_regions = words.flatten(0, 1)[: int(lengths.sum())], regions.flatten(0, 1)
    with torch.inference_mode():
        times = fastest(
            {
                "ours": lambda: cross_attention_similarity(regions, words, lengths, **options),
                "loop": lambda: paper_similarity(regions, words, lengths.tolist(), **options),
                "bare GEMM": lambda: flat_words @ flat_regions.T,
            },
            repetitions=5,
        )
    report(f"scoring {attention}", times, "loop", goal)
    print(f"{'':24} {times['ours'] / times['bare GEMM']:5.1f} x the time of the bare GEMM")


def bench_methods() -> None:
    """Scoring with each method, embeddings given: microseconds a pair, and against SCAN's t2i, in one run."""
    vocabulary = Vocabulary([*SPECIAL, *(f"word{index}" for index in range(100))])
    lengths = coco_lengths(B)
    regions, words = (torch.nn.functional.normalize(torch.randn(B, n, D), dim=-1) for n in (K, int(lengths.max())))
    calls: dict[str, Callable[[], object]] = {}
    for name in METHODS:
        for attention in ("t2i", "i2t") if name == "scan" else ("t2i",):
            config = ModelConfig(
                **(OPTIONS[attention] | {"matcher": name, "attention": attention, "image_mlp": name == "vse"})
            )
            model = make_matcher(config, vocabulary).eval()
            images, captions = (regions[:, :1], words[:, :1]) if model.one_vector else (regions, words)
            padded = PaddedWords(captions, model.embedded_lengths(lengths))
            calls[f"{name} {attention}" if name == "scan" else name] = partial(model.similarities, images, padded)
    times = fastest(calls, repetitions=5)
    for name, seconds in times.items():
        print(
            f"scoring by {name:13} {seconds / times['scan t2i']:6.3f} x the time of scan t2i   "
            f"{1e6 * seconds / B / B:.2f} µs a pair"
        )


def bench_step(attention: str, goal: float) -> None:
    vocabulary = Vocabulary([*SPECIAL, *(f"word{index}" for index in range(10_000))])
    lengths = coco_lengths(B)
    tokens = torch.randint(4, len(vocabulary), (B, int(lengths.max())))
    features = torch.randn(B, K, FEATURES).clamp_min(0)
    steps = {}
    for name in ("ours", "loop"):
        torch.manual_seed(0)
        model = SCAN(ModelConfig(attention=attention, **OPTIONS[attention]), vocabulary)
        optimizer = torch.optim.Adam(model.parameters())

        def step(name: str = name, model: SCAN = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            regions = model.encode_images(features)
            words = model.encode_tokens(tokens, lengths)
            if name == "ours":
                similarity = model.similarity(regions, words, lengths)
            else:
                similarity = paper_similarity(regions, words, lengths.tolist(), **vars(model.cross_attention()))
            optimizer.zero_grad(set_to_none=True)
            triplet_loss(similarity, torch.arange(B)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()

        steps[name] = step
    report(f"training step {attention}", fastest(steps, repetitions=3), "loop", goal)


def bench_memory(budget: int) -> None:
    """Peak memory of a whole evaluation above what model, features and captions take, watched while it runs."""
    torch.manual_seed(0)
    vocabulary = Vocabulary([*SPECIAL, *(f"word{index}" for index in range(1000))])
    model = SCAN(ModelConfig(**OPTIONS["t2i"]), vocabulary).eval()
    features = np.empty((1000, K, FEATURES), dtype=np.float16)
    features[:] = np.random.default_rng(0).random((K, FEATURES), dtype=np.float32)
    captions = [" ".join(["word7"] * (length - 2)) for length in coco_lengths(5000).tolist()]
    data = CaptionedImages(ArraySource(features), captions, np.repeat(np.arange(1000), 5), np.arange(1000))
    few = replace(data, captions=captions[:10], image_of_caption=np.zeros(10, int), rows=np.arange(10))
    collection_similarity(model, few.source, few.rows, few.captions)  # so that the libraries' own buffers are there
    before = peak = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    collection_similarity(model, data.source, data.rows, data.captions, memory_budget=budget)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    print(
        f"{'1,000 x 5,000 evaluation':24} {(peak - before) / 1e6:,.0f} MB at the peak above model and features; budget plus "
        f"result {(budget + 1000 * 5000 * 4) / 1e6:,.0f} MB; {seconds:.0f} s"
    )


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {B} x {B}, {K} regions, D {D}, float32")
    bench_scoring("t2i", 10)
    bench_scoring("i2t", 8)
    bench_methods()
    bench_step("t2i", 5)
    bench_step("i2t", 5)
    bench_memory(512 << 20)
    bench_memory(128 << 20)


if __name__ == "__main__":
    main()
