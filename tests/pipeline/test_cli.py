"""The command line as a new user types it: the README's first screen, and what every mistake says."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from matcher.vocabulary import SPECIAL
from pipeline.pages.pictures import WIDTH
from pipeline.store.reader import open_store
from tests.matcher.test_original import write as write_original
from tests.photos import write_photos
from tests.processes import CLI, Process
from tests.world import SMALL_TRAINING, lay_out_coco, scan


def test_a_run_folder_holds_what_it_promises(inside: Path) -> None:
    run = inside / "runs/t2i_mean"
    assert {"config.yaml", "data.json", "best.safetensors", "last", "metrics.jsonl"} <= {p.name for p in run.iterdir()}
    assert list(run.glob("events.out.tfevents*"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["split"] for row in rows} == {"train", "dev"}


def test_retrieve_prints_photos_with_scores_and_boxes(inside: Path) -> None:
    said = scan("retrieve", "--query", "two dogs play by a tree", "--device", "cpu")
    assert said.exit_code == 0
    lines = [line for line in said.stdout.splitlines() if not line.startswith("note: ")]
    assert lines[0] == "'two dogs play by a tree'  (best 10 of 20; below a photo: share of its score, box)"
    hits = [line for line in lines if re.match(r" +\d+ +-?0\.\d{4}  .*COCO_train2014_\d{12}\.jpg(  \(weak\))?$", line)]
    boxes = [line for line in lines if re.match(r" +\d+%  \[\d+, \d+, \d+, \d+\]  attribute \d object \d+$", line)]
    assert (len(hits), len(boxes)) == (10, 30)
    scores = [float(line.split()[1]) for line in hits]
    assert scores == sorted(scores, reverse=True)


def test_retrieve_as_json_and_picture(inside: Path) -> None:
    said = scan("retrieve", "--query", "a dog", "--query", "a tree", "--top", "3", "--json", "--picture", "hits.png")
    answers = json.loads(said.stdout)
    assert [answer["query"] for answer in answers] == ["a dog", "a tree"]
    assert [hit["rank"] for hit in answers[0]["hits"]] == [1, 2, 3]
    assert Path(answers[0]["hits"][0]["path"]).is_file()
    picture = cv2.imread("hits.png")
    assert picture.shape[1] == WIDTH
    assert len(np.unique(picture)) > 20


def test_retrieve_captions_for_a_photo_by_id_path_and_stranger(inside: Path) -> None:
    by_id = scan("retrieve", "--image", "COCO_train2014_000000000003.jpg", "--json")
    by_path = scan("retrieve", "--image", "coco/train2014/COCO_train2014_000000000003.jpg", "--json")
    answers = [json.loads(result.stdout)[0] for result in (by_id, by_path)]
    assert answers[0]["hits"] == answers[1]["hits"]
    assert answers[0]["searched"] == 40
    assert answers[0]["hits"][0]["caption_id"] >= 700  # COCO's own
    write_photos(inside / "elsewhere", 4, names="new{}.jpg")
    said = scan("retrieve", "--image", "elsewhere/new3.jpg", "--json", "--device", "cpu")
    assert said.exit_code == 0, said.output
    assert "is in no store: extracting its regions" in said.stderr
    found = {hit["caption"]: hit["score"] for hit in json.loads(said.stdout)[0]["hits"]}
    wanted = {hit["caption"]: hit["score"] for hit in answers[0]["hits"]}  # the same picture
    for caption in found.keys() & wanted.keys():
        assert found[caption] == pytest.approx(wanted[caption], abs=2e-3)  # float16 in the store


def test_evaluate_prints_and_writes_both_tasks_in_coco_ids(inside: Path) -> None:
    said = scan("evaluate", "--split", "all", "--folds", "2")
    assert said.exit_code == 0, said.output
    assert "caption retrieval" in said.output
    assert re.search(r"^2 folds of 10 images +\d", said.output, re.MULTILINE)
    content = json.loads((inside / "runs/t2i_mean/evaluation/all.json").read_text())
    assert content["protocols"]["20 images"]["rsum"] > 0
    rankings = json.loads((inside / "runs/t2i_mean/evaluation/all_rankings.json").read_text())
    assert {row["image_id"] for row in rankings["caption_retrieval"]} == set(range(20))
    assert min(row["caption_id"] for row in rankings["image_retrieval"]) == 700


def test_evaluate_adds_what_is_asked_for(inside: Path) -> None:
    said = scan("evaluate", "--split", "all", "--folds", "2", "--bootstrap", "50", "--latex")
    assert said.exit_code == 0, said.output
    assert re.search(r"^  95% from( +\d+\.\d){7}$", said.output, re.MULTILINE)
    rows = re.findall(r"^t2i\\_mean(?: & \d+\.\d){7} \\\\ % (.*)$", said.output, re.MULTILINE)
    assert rows == ["20 images", "2 folds of 10 images"]
    content = json.loads((inside / "runs/t2i_mean/evaluation/all.json").read_text())
    low, high = content["confidence_95"]["rsum"]
    assert low <= content["protocols"]["20 images"]["rsum"] <= high
    assert scan("evaluate", "--split", "all", "--eccv").exit_code == 2  # not COCO's test images


def test_verify_holds_a_run_to_its_preset(inside: Path) -> None:
    for rsum, code in ((0, 0), (600, 1)):
        preset = inside / f"promise{rsum}.yaml"
        preset.write_text(
            "model: {embed_dim: 16, word_dim: 8}\ntraining: {epochs: 1, batch_size: 8, min_word_count: 1}\n"
            f"expected: {{rsum: {rsum}, tolerance: 1.0, folds: 1, split: all}}\n"
        )
        assert scan("train", "--config", str(preset)).exit_code == 0
        said = scan("evaluate", "--run", f"runs/promise{rsum}", "--verify", "--split", "all")
        assert said.exit_code == code, said.output
        assert f"the expected {rsum} - 1.0" in said.output
    said = scan("evaluate", "--run", "runs/t2i_mean", "--verify")
    assert said.exit_code == 2
    assert "has no expected recalls" in said.output


def test_an_original_checkpoint_becomes_a_run(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, "a", "dog", "cat", "tree"])}
    Path("vocab.json").write_text(json.dumps({"word2idx": vocabulary, "idx2word": {}, "idx": 8}))
    write_original(Path("model_best.pth.tar"))
    for name in ("write_json", "save_config", "save_model"):  # killed there, the same command continues
        with monkeypatch.context() as patch:
            patch.setattr(f"pipeline.runs.{name}", lambda *_, **__: sys.exit(137))
            assert scan("import-checkpoint", "model_best.pth.tar", "--vocabulary", "vocab.json").exit_code == 137
    said = scan("import-checkpoint", "model_best.pth.tar", "--vocabulary", "vocab.json")
    assert said.exit_code == 0, said.output
    assert "runs/model_best: i2t_logsumexp, epoch 12, rsum 437.5" in said.output
    assert scan("import-checkpoint", "model_best.pth.tar", "--vocabulary", "vocab.json").exit_code == 2
    asked = scan("evaluate", "--run", "runs/model_best")
    assert asked.exit_code == 2
    assert "the run records no stores; name them with --features" in asked.output
    asked = scan("evaluate", "--run", "runs/model_best", "--features", "features/train2014")
    assert asked.exit_code == 2  # made for features of 12 numbers
    assert "features of 64 numbers, the run was trained on 12" in asked.output


@pytest.mark.slow
def test_two_processes_train_one_run(inside: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "pipeline.cli", "train", "run=runs/two", "--device", "cpu", *SMALL_TRAINING]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("runs/two: best dev rsum") == 1
    logs = [Path(f"runs/{name}/metrics.jsonl").read_text().splitlines() for name in ("two", "t2i_mean")]
    losses = [[row["loss"] for row in map(json.loads, log) if row["split"] == "train"] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_an_ensemble_averages_similarities(inside: Path) -> None:
    trained = scan("train", "--run", "runs/other", *SMALL_TRAINING, "model.attention=i2t", "training.seed=1")
    assert trained.exit_code == 0, trained.output
    said = scan("evaluate", "--run", "runs/t2i_mean", "--run", "runs/other")
    assert said.exit_code == 0, said.output
    assert "runs/t2i_mean/evaluation/dev_with_other.json" in said.output


def test_the_same_command_continues_and_another_configuration_is_refused(inside: Path) -> None:
    again = scan("train", "--run", "runs/t2i_mean", *SMALL_TRAINING)
    assert again.exit_code == 0, again.output
    other = scan("train", "--run", "runs/t2i_mean", *SMALL_TRAINING, "training.margin=0.3")
    assert other.exit_code == 2
    assert "config.training.margin: run 0.2, asked 0.3" in other.output
    repeated = scan("train", "--config", "runs/t2i_mean/config.yaml")  # the resolved configuration repeats the run
    assert repeated.exit_code == 0, repeated.output
    assert "runs/t2i_mean: best dev rsum" in repeated.output
    assert "by chance the dev rsum is" in repeated.output


def test_inspect_verifies_and_exits_with_one_on_damage(inside: Path, tmp_path: Path) -> None:
    said = scan("inspect", "features/train2014")
    assert said.exit_code == 0
    assert "20 images in 1 shards" in said.output
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (inside / "features/train2014").iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: -3 if path.suffix == ".safetensors" else None])
    said = scan("inspect", str(broken))
    assert said.exit_code == 1
    assert "DAMAGED" in said.output


def test_convert_weights(inside: Path, small_weights: Path) -> None:
    said = scan("convert-weights", str(small_weights), "converted.safetensors")
    assert said.exit_code == 0
    assert "scan-pipeline layout, ResNet-18, 12 objects" in said.output


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("extract", "no photos given; name their folder with --images DIR"),
        ("extract --images nowhere", "--images nowhere: not there; expected a folder of photos"),
        ("extract --images coco/train2014 --weights none.pth", "--weights none.pth: no such file, nor a hub name"),
        ("extract --images coco/train2014 detector.depth=50", "detector.depth: decided by the weights"),
        ("extract --images coco/train2014 numregions=3", "unknown key numregions; did you mean num_regions?"),
        ("extract --images coco/train2014 --num-regions 7", "num_regions: store 6, asked 7"),
        ("extract --images coco/train2014 --device cuda:99", "--device cuda:99: not available here"),
        ("inspect coco", "coco: not a feature store (no manifest.json)"),
        ("train --config f30k_t2i", "presets are: coco_"),
        ("train --features nowhere", "nowhere: not a feature store"),
        ("train --captions nowhere.json", "nowhere.json: captions not readable"),
        ("train --captions coco/train2014/COCO_train2014_000000000003.jpg", "captions not readable"),
        ("train training.epochs=many", "training.epochs=many: "),
        ("train model.attention=both", "model.attention=both: expected one of t2i, i2t"),
        ("evaluate --run nowhere", "nowhere: has no best.safetensors; expected a run folder"),
        ("evaluate --split test", "--split test: the data has no such split; it has dev, train"),
        ("retrieve", 'nothing to look for: give --query "two dogs play by a tree" or --image ID|PATH'),
        ("retrieve --query dog --top 0", "--top 0: expected at least 1"),
        ("retrieve --image unknown.jpg", "--image unknown.jpg: neither an image of the stores searched nor a file"),
        ("retrieve --query dog --picture x.txt", "--picture x.txt: expected a name that ends in .png, .jpg, .jpeg"),
        ("retrieve --query dog --picture a.html --html a.html", "--picture a.html: expected a name that ends in .png"),
        ("retrieve --query dog --html a.png --picture a.png", "--html a.png: expected a name that ends in .html, .htm"),
        ("evaluate --html coco/train2014/COCO_train2014_000000000003.jpg", "expected a name that ends in .html, .htm"),
        ("import-features nowhere", "nowhere: not there; expected a folder with SPLIT_ims.npy files"),
        ("convert-weights nowhere.pth x.safetensors", "nowhere.pth: no such weights file"),
        ("convert-weights coco/annotations/captions_train2014.json x.safetensors", "not a weights file, or damaged"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(inside: Path, command: str, message: str) -> None:
    said = scan(*command.split())
    assert said.exit_code == 2, said.output
    errors = [line for line in said.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in said.output


def test_weights_that_cannot_be_fetched_name_every_way(
    inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SCAN_PIPELINE_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("detector.hub._unreachable", lambda _: "offline")
    said = scan("extract", "--images", "coco/train2014", "--weights", "nobody/nothing")
    assert said.exit_code == 2
    for way in ("--weights FILE", "OWNER/REPOSITORY", "SCAN_PIPELINE_WEIGHTS=FILE", "convert-weights"):
        assert way in said.stderr


def test_help_answers_at_once() -> None:
    fastest = 9.0
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pipeline.cli", "--help"], check=True, capture_output=True)
        fastest = min(fastest, time.perf_counter() - started)
    assert fastest < 0.5


@pytest.mark.slow
def test_two_processes_extract_one_store(tmp_path: Path, small_weights: Path) -> None:
    lay_out_coco(tmp_path, 30)
    command = [*CLI, "extract", "--images", "coco/train2014", "--weights", str(small_weights)]
    command += ["--num-regions", "4", "--workers", "0", "--device", "cpu", "shard_size=5", "--output"]
    Process([*command, "alone"], tmp_path).finish()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    Process([*torchrun, *command, "shared"], tmp_path).finish()
    for path in (tmp_path / "alone").glob("[!.]*"):
        assert path.read_bytes() == (tmp_path / "shared" / path.name).read_bytes()


@pytest.mark.slow
def test_a_killed_extraction_continues(tmp_path: Path, small_weights: Path) -> None:
    """A real SIGKILL, a real second process."""
    lay_out_coco(tmp_path, 60)
    command = [*CLI, "extract", "--images", "coco/train2014", "--weights", str(small_weights)]
    command += ["--num-regions", "4", "--workers", "1", "--device", "cpu", "shard_size=5", "--output"]
    Process([*command, "whole"], tmp_path).finish()
    killed = Process([*command, "killed"], tmp_path)
    killed.until(lambda: len(list((tmp_path / "killed").glob("shard-*.json"))) >= 3)
    killed.kill()
    assert 0 < len(open_store(tmp_path / "killed")) < 60
    Process([*command, "killed"], tmp_path).finish()
    for path in (tmp_path / "whole").glob("[!.]*"):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()
