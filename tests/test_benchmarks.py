"""The benchmarks of extraction run, and the two detectors that it compares find the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detector import RegionExtractor
from detector.config import DetectorConfig
from tests.benchmarks import methods, serve, windows
from tests.benchmarks.extract import TINY, main, seeded
from tests.published import PublishedDetector
from tests.toy import toy_world


def test_ours_finds_what_detectron2s_own_model_finds() -> None:
    model, weights = seeded(DetectorConfig(**TINY))
    extractor = RegionExtractor(model, weights, device="cpu")
    image = extractor.prepare(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8))
    (found,) = extractor([image])
    boxes, features = PublishedDetector(model, extractor.num_regions)(image)
    distance = np.abs(found.boxes[None] - boxes.numpy()[:, None]).max(2)  # (wanted, found)
    rows = distance.argmin(1)
    same = distance.min(1) < 0.05
    assert same.sum() >= 35  # ties in the last digit may put another region in the last place
    np.testing.assert_allclose(found.features[rows[same]], features.numpy()[same], rtol=1e-3, atol=1e-3)


def test_the_benchmark_of_extraction_runs(capsys: pytest.CaptureFixture[str]) -> None:
    ratios = main(["--tiny", "--device", "cpu", "--photos", "2", "--repetitions", "1", "--batch-size", "2"])
    printed = capsys.readouterr().out
    assert all(ratio > 0 for ratio in ratios.values())
    for stage in ("photos/s", "decode wait", "backbone", "RoI pool", "res5", "selection", "write (in a thread)"):
        assert stage in printed


def test_the_benchmark_of_windows_runs(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert windows.main(["--repetitions", "3"]) < windows.GOAL * 1.5  # in a test, others use the processor too
    torch.set_num_threads(threads)
    assert "bare network" in capsys.readouterr().out


@pytest.mark.slow
def test_the_benchmark_of_the_service_runs(capsys: pytest.CaptureFixture[str]) -> None:
    seen, sizes = serve.main(["--photos", "12", "--clients", "4", "--seconds", "1", "--queries", "40"])
    assert not seen.errors
    assert len(sizes) == 10
    assert "p99" in capsys.readouterr().out


def test_the_leaderboard_runs_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, world in (("train", toy_world(20)), ("dev", toy_world(8, seed=5))):
        np.save(tmp_path / f"{split}_ims.npy", world.source.gather(world.rows))
        captions = [
            caption for image in range(len(world.rows)) for caption in (world.captions[2 * image :][:2] * 3)[:5]
        ]
        (tmp_path / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    pair = ("VSE∞, InfoNCE", "NAAF, InfoNCE")
    monkeypatch.setattr(methods, "METHODS", {name: methods.METHODS[name] for name in pair})
    arguments = ["--data", str(tmp_path), "--output", str(tmp_path / "out"), "--epochs", "1"]
    methods.main([*arguments, "--seeds", "1"])
    rows = (tmp_path / "out/rows.jsonl").read_text()
    methods.main([*arguments, "--seeds", "2"])
    assert (tmp_path / "out/rows.jsonl").read_text().startswith(rows)  # what is done is not done again
    table = (tmp_path / "out/table.md").read_text().splitlines()
    assert len(table) == 2 + 2 + 1  # head, methods, their ensemble
    assert table[-1].startswith("| VSE∞, InfoNCE + NAAF, InfoNCE |")
    assert " ± " in table[2]
    assert capsys.readouterr().out.count("seed 0: rsum") == 2
