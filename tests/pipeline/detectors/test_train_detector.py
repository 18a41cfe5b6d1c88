"""`scan-pipeline train-detector` as its users type it, on photos of coloured rectangles."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file

from detector import RegionExtractor
from detector.config import DetectorConfig
from detector.training.imagenet import convert_imagenet
from detector.weights import load_weights
from pipeline.config import load_config
from pipeline.store.reader import open_store
from pipeline.train_detector import TrainDetectorConfig
from tests.coloured_boxes import COLOURS, SCRATCH, SHORT, SIZE, TINY, command, draw_world, metrics, refused
from tests.processes import Process
from tests.world import scan

REPOSITORY = Path(__file__).resolve().parents[3]
PRESETS = sorted(
    path for path in (REPOSITORY / "configs/train-detector").glob("*.yaml") if not path.stem.startswith("demo")
)


def test_a_training_says_what_it_does_and_leaves_what_it_promises(inside: Path) -> None:
    said = (inside / "said.txt").read_text()
    assert "images: 9 to train on, 3 held out" in said
    assert "boxes: 24 used" in said
    assert "attributes: 24 used" in said
    assert (
        "ResNet-18 C4 of width 16, 3 objects, 2 attributes, features of 128 numbers; 6 steps of 2 images (1.3 epochs)"
        in said
    )
    assert "detectors/first/detector.safetensors: AP " in said
    assert "next:\n  scan-pipeline extract --images DIR --weights detectors/first/detector.safetensors" in said
    run = inside / "detectors/first"
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["step"] == 6
    assert set(evaluation["objects"]) == set(evaluation["attributes"]) == {"mAP50", "mAP50_weighted", "mAP50_seen"}
    assert {"AP", "AP50", "AP75"} <= set(evaluation["bbox"])
    assert all(np.isfinite(value) for kind in ("bbox", "objects", "attributes") for value in evaluation[kind].values())
    assert (run / "checkpoints/last_checkpoint").read_text() == "model_final.pth"
    assert list(run.glob("events.out.tfevents*"))
    logged = metrics(run)
    losses = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_attr", "total_loss"}
    assert losses | {"lr", "data_time", "bbox/AP50", "objects/mAP50", "attributes/mAP50"} <= set().union(*logged)
    settings = load_config(TrainDetectorConfig, group="train-detector", config=str(run / "config.yaml"))
    assert settings.network.anchor_sizes == (12.0, 24.0, 48.0)


def test_what_was_learnt_extracts_and_its_names_travel(inside: Path) -> None:
    weights = "detectors/first/detector.safetensors"
    extractor = RegionExtractor.from_weights(weights, num_regions=5, device="cpu")
    assert extractor.object_names == list(COLOURS)
    assert extractor.attribute_names == ["large", "small"]
    said = scan("extract", "--images", "vg/VG_100K", "--weights", weights, "--num-regions", "5", "--workers", "0", "--device", "cpu")  # fmt: skip
    assert said.exit_code == 0, said.output
    store = open_store("features/VG_100K")
    assert (len(store), store.feature_dim) == (12, 128)
    assert store.manifest["object_names"] == list(COLOURS)
    assert store.manifest["attribute_names"] == ["large", "small"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (command("--init", "none"), "training.norm FrozenBN: from scratch, what is frozen would never be learnt"),
        (command("--init", "none", "training.norm=BN"), "training.frozen_stages 2: from scratch"),
        (command(*SCRATCH, "training.precision=fp16"), "training.precision fp16: needs a CUDA device, found cpu"),
        (command(*SCRATCH, "training.norm=SyncBN"), "training.norm SyncBN: needs several CUDA processes"),
        (command(*SCRATCH, "training.steps=0"), "training.steps=0: expected at least 1"),
        (command("--init", "gone.pth"), "--init gone.pth: no such file, nor a hub name"),
        (command("--init", "objects.txt"), "objects.txt: not a weights file, or damaged"),
        (["train-detector", *TINY], "neither of --visual-genome DIR and --coco DIR given; expected one of them"),
        (["train-detector", "--coco", "coco", "--attributes", "none", *TINY], "--attributes: does not go with --coco"),
        (command("--held-out", "objects.txt"), "objects.txt: holds no COCO ids"),
        (command("--evaluate-only", "--run", "detectors/none"), "none/detector.safetensors: no detector there to evaluate"),
        (command("--evaluate-only", "--attributes", "none", "--run", "detectors/first"), "knows 2 attributes (large, small, …)"),
        (command(*SCRATCH, *SHORT, "training.learning_rate=1e30", "training.grad_clip=0", "--run", "detectors/diverged"), "lower training.learning_rate"),
    ],
    ids=["frozen-norm", "frozen-stages", "fp16", "syncbn", "steps", "no-file", "no-weights", "no-data", "coco-attributes", "held-out",
         "nothing-to-evaluate", "other-classes", "diverged"],
)  # fmt: skip
def test_mistakes_end_in_one_line(inside: Path, arguments: list[str], message: str) -> None:
    assert message in refused(*arguments)
    assert not (inside / "detectors/vg_r18").exists()  # or the command, mended, would be refused as another run


def test_starts_from_an_imagenet_file(inside: Path) -> None:
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, "resnet18.pth")
    said = scan(*command("--init", "resnet18.pth", "--steps", "1", "--batch-size", "2", "network.width=64", "--run", "detectors/imagenet"))  # fmt: skip
    assert said.exit_code == 0, said.output
    weights = load_weights(inside / "detectors/imagenet/detector.safetensors")
    config, expected = convert_imagenet(state, DetectorConfig(depth=18), "resnet18.pth")
    assert weights.config.pixel_mean == config.pixel_mean
    for name in (
        "backbone.stem.conv1.weight",
        "backbone.res2.1.conv2.weight",
        "backbone.res4.0.conv1.norm.running_var",
    ):
        torch.testing.assert_close(weights.tensors[name], expected[name])
    assert not torch.equal(weights.tensors["roi_heads.res5.0.conv1.weight"], expected["roi_heads.res5.0.conv1.weight"])
    assert "is not the ResNet-18 of width 16 that is asked for" in refused(*command("--init", "resnet18.pth"))


def test_starts_from_a_detector_and_keeps_the_classes_that_it_shares(inside: Path) -> None:
    first = load_weights(inside / "detectors/first/detector.safetensors")
    (inside / "other.txt").write_text("crate,red box\nlawn,green box\nsea,blue box\n")  # as many, but others
    frozen = [
        "--init",
        "detectors/first/detector.safetensors",
        "--steps",
        "1",
        "--batch-size",
        "2",
        "training.learning_rate=1e-9",
    ]
    kept, dropped = (
        ("roi_heads.box_predictor.attr_score.weight", "roi_heads.box_predictor.fc_attr.weight", "roi_heads.res5.1.conv2.weight"),
        ("roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.bbox_pred.weight"),
    )  # fmt: skip
    for objects, run, same, others in (
        ("objects.txt", "again", kept + dropped, ()),
        ("other.txt", "tuned", kept, dropped),
    ):
        said = scan(*command(*frozen, "--objects", objects, "--run", f"detectors/{run}", "network.rpn_min_size=7"))
        assert said.exit_code == 0, said.output
        assert f"note: network.rpn_min_size=7.0 does nothing: --init {frozen[1]} has 0.0" in said.output
        tuned = load_weights(inside / f"detectors/{run}/detector.safetensors")
        assert tuned.config == first.config
        for name in same:
            torch.testing.assert_close(tuned.tensors[name], first.tensors[name], atol=1e-6, rtol=1e-4)
        for name in others:
            assert not torch.allclose(tuned.tensors[name], first.tensors[name], atol=1e-3)
    assert tuned.object_names == ["crate", "lawn", "sea"]


def test_evaluate_only_takes_the_run_or_a_file(inside: Path) -> None:
    run = inside / "detectors/first"
    trained = json.loads((run / "evaluation.json").read_text())
    saved = (run / "evaluation.json").read_bytes(), (run / "detector.safetensors").read_bytes()
    said = scan(
        *command("--evaluate-only", "--init", str(run / "detector.safetensors"), "--run", "detectors/evaluated")
    )
    assert said.exit_code == 0, said.output
    assert "first/detector.safetensors: AP " in said.output
    judged = json.loads((inside / "detectors/evaluated/evaluation.json").read_text())
    for kind in ("bbox", "objects", "attributes"):
        assert judged[kind] == pytest.approx(trained[kind], abs=0.01)
    assert ((run / "evaluation.json").read_bytes(), (run / "detector.safetensors").read_bytes()) == saved
    assert not (inside / "detectors/evaluated/detector.safetensors").exists()
    assert (judged["images_trained_on"], "was trained on" in said.output) == (0, False)
    (inside / "detectors/copy").mkdir()
    (inside / "detectors/copy/detector.safetensors").write_bytes(saved[1])
    assert scan(*command("--evaluate-only", "--run", "detectors/copy")).exit_code == 0  # asks for no --init
    assert (inside / "detectors/copy/detector.safetensors").read_bytes() == saved[1]
    learned = json.loads((run / "learned.json").read_text())
    assert (len(learned["photos"]), learned["is_all"]) == (9, True)
    photos = inside / "vg/VG_100K"
    seen = {
        f"{number}.png": [(photos / f"{number}.png").stat().st_size + other]
        for number, other in ((4, 0), (8, 0), (12, 1))
    }
    (inside / "detectors/copy/learned.json").write_text(json.dumps({"photos": seen, "is_all": False}))
    note = "detectors/copy/detector.safetensors was trained on 2 of the 3 images held out"
    assert note in scan(*command("--evaluate-only", "--run", "detectors/copy")).output
    assert json.loads((inside / "detectors/copy/evaluation.json").read_text())["images_trained_on"] == 2
    tuned = scan(*command(*SHORT, "--init", "detectors/copy/detector.safetensors", "--run", "detectors/seen"))
    assert note in tuned.output
    assert json.loads((inside / "detectors/seen/evaluation.json").read_text())["images_trained_on"] == 2
    taught = json.loads((inside / "detectors/seen/learned.json").read_text())
    assert (taught["photos"].keys(), taught["is_all"]) == (learned["photos"].keys() | seen.keys(), False)
    (inside / "detectors/copy/learned.json").unlink()
    said = scan(*command("--evaluate-only", "--run", "detectors/copy")).output
    assert "note: which images detectors/copy/detector.safetensors was trained on is not known" in said
    assert json.loads((inside / "detectors/copy/evaluation.json").read_text())["images_trained_on"] is None


def test_an_unreadable_photo_is_passed_over_with_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_world(tmp_path, 12)
    monkeypatch.chdir(tmp_path)
    for image_id in (3, 8):  # one to train on, one to judge
        (tmp_path / f"vg/VG_100K/{image_id}.png").write_bytes(b"torn")
    objects = json.loads((tmp_path / "vg/objects.json").read_text())
    for row in objects:
        row["objects"] = [] if row["image_id"] in (2, 4) else row["objects"]  # and one of each that shows nothing
    (tmp_path / "vg/objects.json").write_text(json.dumps(objects))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said = scan(*command(*SCRATCH, "--steps", "8", "--batch-size", "3", "training.evaluate_every=4"))
    assert said.exit_code == 0, said.output
    told = [str(one.message) for one in caught if "torn" in str(one.message) or ".png" in str(one.message)]
    assert sorted(line.split(": ")[0][-5:] + line.split(": ")[1] for line in told) == [
        "3.pngskipped in training", "8.pngevaluated as a blank image",
    ]  # fmt: skip
    assert "images: 1 without a usable box, 8 to train on, 3 held out" in said.output
    assert "detectors/vg_r18/detector.safetensors" in said.output


def test_coco_instances_train_too(inside: Path) -> None:
    for split in ("train2017", "val2017"):
        (inside / f"coco/{split}").mkdir(parents=True)
        (inside / "coco/annotations").mkdir(exist_ok=True)
        rows: dict[str, list[dict]] = {"images": [], "annotations": [], "categories": [{"id": 9, "name": "box"}]}
        for index in range(1, 5):
            name = f"{index}.png"
            (inside / f"coco/{split}/{name}").write_bytes((inside / f"vg/VG_100K/{name}").read_bytes())
            rows["images"].append({"id": index, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
            rows["annotations"].append({"id": index, "image_id": index, "category_id": 9, "bbox": [5, 5, 30, 30]})
        (inside / f"coco/annotations/instances_{split}.json").write_text(json.dumps(rows))
    (inside / "karpathy.txt").write_text("2")
    said = scan(
        "train-detector", "--coco", "coco", "--held-out", "karpathy.txt", *TINY[:-2], *SCRATCH, "--steps", "1", "--batch-size", "1", "--workers", "1"
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    assert "1 kept from training, 3 to train on, 4 held out" in said.output
    weights = load_weights(inside / "detectors/coco_r18/detector.safetensors")
    assert (weights.object_names, weights.attribute_names) == (["box"], [])


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_load(path: Path) -> None:
    config = load_config(TrainDetectorConfig, group="train-detector", config=path.stem)
    assert config.training.precision == "bf16"
    assert config.training.norm == "FrozenBN"
    per_image = config.training.learning_rate / config.training.batch_size
    assert per_image == pytest.approx(1.25e-3 if path.stem.startswith("coco") else 5e-4)
    assert f"train-detector --config {path.stem}" in path.read_text()
    assert len(PRESETS) == 4


@pytest.mark.parametrize("name", ["demo", "demo_quick"])
def test_the_demos_presets_differ_in_length_alone(name: str) -> None:
    config = load_config(TrainDetectorConfig, group="train-detector", config=name)
    full = load_config(TrainDetectorConfig, group="train-detector", config="demo")
    assert (config.init, config.training.norm, config.training.frozen_stages) == ("none", "BN", 0)
    assert config.network == full.network


@pytest.mark.slow
def test_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_world(tmp_path, 120)
    monkeypatch.chdir(tmp_path)
    recipe = [
        "--steps", "160", "--batch-size", "4", "training.evaluate_every=40", "training.schedule=cosine", "training.learning_rate=4e-3",
        "training.warmup_steps=20",
    ]  # fmt: skip
    said = scan(*command(*SCRATCH, *recipe, "--run", "detectors/taught"))
    assert said.exit_code == 0, said.output
    rows = [row for row in metrics(tmp_path / "detectors/taught") if "bbox/AP50" in row]
    assert [row["iteration"] for row in rows] == [39, 79, 119, 160]
    early, late = rows[0], rows[-1]
    for name, least in (("bbox/AP50", 25), ("objects/mAP50", 25), ("attributes/mAP50", 60)):
        assert late[name] > least, (name, rows)
    assert late["bbox/AP50"] > early["bbox/AP50"] + 15
    assert late["objects/mAP50_weighted"] > early["objects/mAP50_weighted"] + 15


RANKS = """
import os, torch
import detector.training.fit as fit
from detector.training.model import plain_state
from pipeline.cli import main

evaluate = fit.evaluate_detector

def evaluated(model, *arguments, **options):
    torch.save(plain_state(model.model), f"rank{os.environ['RANK']}.pt")
    return evaluate(model, *arguments, **options)

fit.evaluate_detector = evaluated
main()
"""


@pytest.mark.slow
def test_processes_of_torchrun_train_one_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_world(tmp_path, 12)
    (tmp_path / "ranks.py").write_text(RANKS)  # the command, each process of which also tells what it has learnt
    recipe = [*SCRATCH, "--steps", "4", "--batch-size", "4", "training.checkpoint_every=2", "training.flip=false"]

    def torchrun() -> str:
        runner = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "ranks.py"]
        return Process([*runner, *command(*recipe, "run=detectors/two")], tmp_path).finish()

    said = torchrun()
    assert said.count("detectors/two/detector.safetensors: AP") == 1
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    saved = load_file(tmp_path / "detectors/two/detector.safetensors")
    for name, tensor in saved.items():
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=0)
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=0)

    monkeypatch.chdir(tmp_path)
    assert scan(*command(*recipe, "run=detectors/one")).exit_code == 0
    losses = [metrics(tmp_path / f"detectors/{name}")[0] for name in ("one", "two")]
    # Of one batch and one network, up to the proposals that are drawn and to norms over half of the batch each.
    for name in ("total_loss", "loss_cls", "loss_rpn_cls"):
        assert losses[1][name] == pytest.approx(losses[0][name], rel=0.2)
    assert "4 steps" in torchrun()  # finished: every process agrees that it is
