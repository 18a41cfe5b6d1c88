"""What evaluation adds to the recalls."""

import importlib.util
import json
import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from matcher.checkpoint import FORMAT, digest, load_model
from matcher.errors import MatcherError
from matcher.metrics import RetrievalMetrics, TaskMetrics, chance, ranks, recalls
from matcher.metrics_log import read_metrics
from matcher.vocabulary import Vocabulary
from pipeline.claim import claim_run
from pipeline.eccv import check_eccv, eccv_caption
from pipeline.errors import PipelineError
from pipeline.recall_table import latex_row
from pipeline.runs import TrainConfig, load_run
from tests.world import SMALL_TRAINING, scan


def test_data_and_runs_of_equal_names_have_recalls_of_their_own(own_world: Path) -> None:
    captions = "coco/annotations/captions_train2014.json"
    for folder in "ab":
        shutil.copytree("runs/t2i_mean", f"{folder}/run")
        shutil.copytree("features/train2014", f"{folder}/photos")
    evaluated = ["evaluate", "--run", "runs/t2i_mean", "--device", "cpu"]
    written = []
    for options in ([f"--run={folder}/run"] for folder in "aba"):
        written.append(re.findall(r"evaluation/(\S+)", scan(*evaluated, *options).output)[-1])
    for options in ([f"--features={folder}/photos", f"--captions={captions}"] for folder in "aba"):
        written.append(re.findall(r"evaluation/(\S+)", scan(*evaluated, *options).output)[-1])
    data = "photos_captions_train2014_all"
    assert written[:3] == ["dev_with_run.json", "dev_with_run_2.json", "dev_with_run.json"]
    assert written[3:] == [f"{data}.json", f"{data}_2.json", f"{data}.json"]
    found = json.loads(Path("runs/t2i_mean/evaluation/dev_with_run_2.json").read_text())
    assert found["made_of"] == ["../../../b/run"]


def test_latex_row() -> None:
    task = TaskMetrics(61.8, 87.5, 93.7, 1, 3.0)
    row = latex_row("t2i_avg", RetrievalMetrics(task, TaskMetrics(45.8, 74.4, 83.0, 2, 12.0)))
    assert row == r"t2i\_avg & 61.8 & 87.5 & 93.7 & 45.8 & 74.4 & 83.0 & 446.2 \\"
    assert latex_row("50%_a&b", RetrievalMetrics(task, task)).startswith(r"50\%\_a\&b & ")


needs_eccv = pytest.mark.skipif(importlib.util.find_spec("eccv_caption") is None, reason="extra eccv is not installed")


@needs_eccv
def test_eccv_of_other_photos_is_refused_before_the_work() -> None:
    with pytest.raises(PipelineError, match=r"of 5,000 images and 25,000 captions \d+ and \d+ have an id of the test"):
        check_eccv(list(range(5000)), list(range(25_000)))


@pytest.mark.slow
@needs_eccv
def test_eccv_caption_from_coco_ids() -> None:
    """A similarity that knows the truth finds every caption of COCO; ids of other photos are refused."""
    spec = importlib.util.find_spec("eccv_caption")
    assert spec is not None
    assert spec.submodule_search_locations
    with open(f"{spec.submodule_search_locations[0]}/data/original_image_to_caption.json") as file:
        truth = {int(image): captions for image, captions in json.load(file).items()}
    images = list(truth)
    captions = [int(caption) for image in images for caption in truth[image]]
    similarity = np.zeros((len(images), len(captions)), dtype=np.float32)
    column = 0
    for row, image in enumerate(images):
        similarity[row, column : column + len(truth[image])] = 1
        column += len(truth[image])
    found = eccv_caption(similarity, images, captions)
    assert found["coco_5k_r1"] == {"i2t": 1.0, "t2i": 1.0}
    assert found["cxc_r1"]["i2t"] > 0.99
    assert 0.1 < found["eccv_map_at_r"]["t2i"] < 1  # it knows more right answers than COCO does
    with pytest.raises(PipelineError, match="expected COCO's 5,000 test images"):
        eccv_caption(similarity[:2, :10], [1, 2], list(range(10)))


def test_chance_is_what_random_rankings_give() -> None:
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(12), rng.integers(1, 4, 12))
    found = [recalls(ranks(rng.random((12, len(owner))), owner)).flat() for _ in range(3000)]
    expected = chance(owner, 12)
    for name, value in expected.items():
        assert np.mean([metrics[name] for metrics in found]) == pytest.approx(value, abs=0.02 * max(value, 30))
    assert chance(np.repeat(np.arange(1000), 5), 1000)["image_retrieval_r10"] == 1.0
    assert chance(np.repeat(np.arange(10), 5), 10, folds=2)["image_retrieval_r1"] == 20.0


def test_chance_and_intervals_are_beside_every_recall(inside: Path) -> None:
    said = scan("evaluate", "--run", "runs/t2i_mean", "--bootstrap", "50", "--html", "e.html")
    assert said.exit_code == 0, said.output
    assert "by chance" in said.output
    assert "95% from" in said.output
    assert "note: 5 photos are few" in said.output
    content = json.loads(Path("runs/t2i_mean/evaluation/dev.json").read_text())
    assert content["chance"]["5 images"]["image_retrieval_r1"] == 20
    assert "by chance" in Path("e.html").read_text()
    page = Path("e.html").read_text()
    assert "95% interval" in page
    assert "note: 5 photos are few" in page
    assert content["images_trained_on"] == [0]
    assert "<h1>Evaluation of runs/t2i_mean</h1>" in page
    assert re.search(r"split dev: 5 images, \d+ captions of \S*features/train2014", page)
    assert '<g id="' not in page  # names that would repeat in every plot


def test_rankings_of_two_datasets_that_number_alike_tell_their_images_apart(inside: Path, tmp_path: Path) -> None:
    """As Flickr8k and Flickr30k do, whose JSON files both count images and sentences from 0."""
    files = []
    for part, numbers in enumerate((range(10), range(10, 20))):
        images = [
            {"filename": f"COCO_train2014_{n:012}.jpg", "imgid": i, "sentences": [{"raw": f"a dog {n}", "sentid": i}]}
            for i, n in enumerate(numbers)
        ]
        files += ["--captions", str(tmp_path / f"dataset{part}.json")]
        (tmp_path / f"dataset{part}.json").write_text(json.dumps({"images": images}))
    assert scan("evaluate", "--run", "runs/t2i_mean", "--split", "all", *files).exit_code == 0
    rankings = json.loads(Path("runs/t2i_mean/evaluation/dataset0_dataset1_all_rankings.json").read_text())
    names = {f"COCO_train2014_{number:012}.jpg" for number in range(20)}
    assert {entry["image_id"] for entry in rankings["caption_retrieval"]} == names
    assert {entry["caption_id"] for entry in rankings["image_retrieval"]} == {f"{name}#0" for name in names}
    assert all(len(set(entry["image_ids"])) == 10 for entry in rankings["image_retrieval"])


def test_a_model_of_another_configuration_is_refused(own_world: Path) -> None:
    """Whether the model was taken from another run, or somebody hoped to change it there."""
    path = Path("runs/t2i_mean/config.yaml")
    path.write_text(path.read_text().replace("softmax_temperature: 9.0", "softmax_temperature: 4.0"))
    said = scan("evaluate", "--run", "runs/t2i_mean")
    assert said.exit_code == 2
    changed = "softmax_temperature: config.yaml 4.0, best.safetensors 9.0"
    assert f"config.yaml: not the configuration of its model ({changed})" in said.output


def test_a_project_moves_as_one(own_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The photos, features, runs and captions go foreign together; nothing of the old place is used."""
    assert scan("train", "--device", "cpu", "--run", "runs/mine", *SMALL_TRAINING).exit_code == 0
    moved = own_world.parent / f"{own_world.name}_moved"
    monkeypatch.chdir(own_world.parent)
    own_world.rename(moved)
    monkeypatch.chdir(moved)
    evaluated = scan("evaluate", "--run", "runs/mine")
    assert evaluated.exit_code == 0, evaluated.output
    resumed = scan(
        "train", "--device", "cpu", "--run", "runs/mine", "--features", "features/train2014", *SMALL_TRAINING
    )
    assert resumed.exit_code == 0, resumed.output


def test_refusals_come_before_the_work(own_world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.evaluate.mean_similarity", None)
    for arguments, message in (
        (["--folds", "3"], "5 images do not divide into 3 equal folds"),
        (["--verify"], "has no expected recalls"),
        (["--eccv"], "expected COCO's 5,000 test images"),
    ):
        said = scan("evaluate", "--run", "runs/t2i_mean", *arguments)
        assert said.exit_code == 2
        assert message in said.output
    config = yaml.safe_load(Path("runs/t2i_mean/config.yaml").read_text())
    for expected, message in (
        (
            {"rsum": 400, "folds": 5, "split": "dev"},
            "the preset expects the mean of 5 folds, not of 1; evaluate with --folds 5",
        ),
        ({"rsum": "many"}, "its expected recalls are not numbers"),
        ({"rsum": 400}, "the preset's recalls are of the split test, not of dev"),
    ):
        Path("runs/t2i_mean/config.yaml").write_text(yaml.safe_dump({**config, "expected": expected}))
        said = scan("evaluate", "--run", "runs/t2i_mean", "--verify")
        assert (said.exit_code, message in said.output) == (2, True), said.output
    said = scan("evaluate", "--run", "runs/t2i_mean", "--run", "runs/t2i_mean", "--verify")
    assert (said.exit_code, "a preset's recalls are of one run, not of an ensemble" in said.output) == (2, True)


@pytest.mark.parametrize("command", [["train", "--device", "cpu", "--run", "mine"]])
def test_a_folder_with_other_files_is_no_run(inside: Path, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "config.yaml").write_text("mine: true")
    said = scan(*command[:-1], str(tmp_path), *SMALL_TRAINING)
    assert said.exit_code == 2
    assert "holds other files (config.yaml) and no run" in said.output
    assert (tmp_path / "config.yaml").read_text() == "mine: true"


def test_a_start_that_fails_leaves_the_folder_to_the_corrected_command(inside: Path, tmp_path: Path) -> None:
    arguments = ["train", "--device", "cpu", "--run", str(tmp_path / "run"), *SMALL_TRAINING]
    assert scan(*arguments, "--text-encoder", "./typo").exit_code == 2
    assert not (tmp_path / "run").exists()
    with claim_run(tmp_path / "run", TrainConfig(), {"config": {"other": 1}, "data": {}}):  # claimed, and nothing made
        busy = scan(*arguments)
    assert "another process is training in it" in busy.output
    said = scan(*arguments)
    assert said.exit_code == 0, said.output


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    JSON
    | st.fixed_dictionaries(
        {"data": st.fixed_dictionaries({"stores": JSON, "captions": JSON, "extraction": JSON, "folder": JSON})}
    ),
    JSON,
    st.lists(JSON),
)
def test_any_json_in_a_run_folder_is_read_or_refused(
    inside: Path, tmp_path: Path, data: object, splits: object, log: list
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(inside / "runs/t2i_mean", folder, dirs_exist_ok=True)
    (folder / "data.json").write_text(json.dumps(data))
    with suppress(PipelineError):
        load_run(folder, torch.device("cpu"))
    shutil.copy(inside / "runs/t2i_mean/data.json", folder)
    (folder / "splits.json").write_text(json.dumps(splits))
    with suppress(PipelineError):
        load_run(folder, torch.device("cpu"))
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)))
    assert all(isinstance(row["step"], int) for row in read_metrics(folder / "metrics.jsonl"))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON | st.fixed_dictionaries({"config": JSON, "vocabulary": JSON, "sha256": JSON}))
def test_any_metadata_of_a_model_is_refused(tmp_path: Path, content: object) -> None:
    (tmp_path / "m.safetensors").write_bytes(save({"x": torch.zeros(2)}, {FORMAT: json.dumps(content)}))
    with pytest.raises(MatcherError):
        load_model(tmp_path / "m.safetensors")
    if isinstance(content, dict):
        tensors = {"x": torch.zeros(2)}
        content = {key: value for key, value in json.loads(json.dumps(content)).items() if key != "sha256"}
        content["sha256"] = digest([content, tensors])
        (tmp_path / "m.safetensors").write_bytes(save(tensors, {FORMAT: json.dumps(content)}))
        with pytest.raises(MatcherError):
            load_model(tmp_path / "m.safetensors")


def test_captions_that_a_run_cuts_are_counted(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("evaluate", "--run", "runs/t2i_mean", "--device", "cpu")
    assert "longer than" not in scan(*asked).output
    monkeypatch.setattr(
        Vocabulary, "is_cut", lambda self, caption: "dog" in caption
    )  # as WordPieces, beyond 510 pieces
    assert re.search(
        r"note: \d+ captions are longer than .*t2i_mean reads: their ends are left out", scan(*asked).output
    )


def test_captions_of_another_language_are_counted(inside: Path, tmp_path: Path) -> None:
    asked = ("evaluate", "--run", "runs/t2i_mean", "--device", "cpu")
    assert "half of the words" not in scan(*asked).output
    images = [image for split in load_run(inside / "runs/t2i_mean", "cpu").splits.values() for image in split]
    rows = [f"{image},Ein Hund rennt neben a dog\n" for image in images]
    (tmp_path / "captions.csv").write_text("".join(["image,caption\n", *rows, *(f"{image},...\n" for image in images)]))
    output = scan(*asked, "--captions", str(tmp_path / "captions.csv"), "--split", "all").output
    assert re.search(
        rf"note: of {len(rows)} of {2 * len(rows)} captions .*t2i_mean knows half of the words or fewer, such as 'Ein Hund",
        output,
    )
