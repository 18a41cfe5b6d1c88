"""Photos, no captions, no weights, no GPU, no network: what the starter is for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from matcher.checkpoint import load_model
from matcher.encoders import ClassNames
from pipeline.config import load_config
from pipeline.errors import PipelineError
from pipeline.explanation import LIKELY, class_names_of, region_name
from pipeline.extract import ExtractConfig, next_steps
from pipeline.extract import run as extract
from pipeline.extraction.detectors import extractor_like, with_weights
from pipeline.inputs.photos import read_image
from pipeline.retrieve import RetrieveConfig
from pipeline.retrieve import run as retrieve
from pipeline.runs import SHIPPED, find_run, load_run
from pipeline.search import open_search
from pipeline.store.reader import open_store
from tests.world import HEAVY, SMALL_TRAINING, imported_by, scan

PHOTOS = SHIPPED / "photos"


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a machine without weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCAN_PIPELINE_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("detector.locate._download", lambda *_: pytest.fail("asked the hub"))
    return tmp_path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample photos, extracted with the starter."""
    folder = tmp_path_factory.mktemp("starter") / "features" / "photos"
    extract(
        ExtractConfig(images=(str(PHOTOS),), output=str(folder), weights="starter", workers=0, device="cpu"),
        progress=False,
    )
    return folder


def test_the_first_minutes(alone: Path) -> None:
    said = scan("extract", "--images", str(PHOTOS), "--workers", "0", "--device", "cpu", "--limit", "6")
    assert said.exit_code == 0, said.output
    assert "note: no detector weights found, so the starter is used" in said.output
    assert "scan-pipeline extract --weights unc-nlp/frcnn-vg-finetuned" in said.output
    assert "next:\n  scan-pipeline retrieve --query " in said.output
    assert "scan-pipeline train" not in said.output
    said = scan("retrieve", "--query", "a man on a surfboard", "--device", "cpu")
    assert said.exit_code == 0, said.output
    assert "the starter's run is used" in said.output
    assert "best 6 of 6; below a photo: share of its score, box" in said.output
    assert "windows pooled from tf_efficientnet_lite0" in scan("inspect", "features/photos").output


@pytest.mark.parametrize("asked", [(), ("--run", "starter")])
def test_a_query_before_any_photo_asks_for_photos_and_not_for_a_training(alone: Path, asked: tuple[str, ...]) -> None:
    said = scan("retrieve", "--query", "a dog", "--device", "cpu", *asked)
    assert said.exit_code == 2
    assert "no feature store found" in said.output
    assert "make one with: scan-pipeline extract --images DIR" in said.output


def test_photos_without_features_are_named_each_time(alone: Path) -> None:
    photo = min(PHOTOS.glob("*.jpg"))
    (alone / "photos").mkdir()
    (alone / "photos" / "whole.jpg").write_bytes(photo.read_bytes())
    (alone / "photos" / "half.jpg").write_bytes(photo.read_bytes()[:2000])
    for _ in range(2):
        said = scan("extract", "--images", "photos", "--workers", "0", "--device", "cpu")
        assert "1 photo has no features (half.jpg: truncated); listed in features/photos/failures.jsonl" in said.output


def test_asked_for_by_name_it_says_nothing(alone: Path) -> None:
    said = scan("extract", "--images", str(PHOTOS), "--weights", "starter", "--workers", "0", "--limit", "1")
    assert said.exit_code == 0, said.output
    assert "note:" not in said.output


def test_weights_that_are_there_win(alone: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ExtractConfig(images=(str(PHOTOS),))
    assert with_weights(config).weights == "starter"
    cached = alone / "cache" / "scan-pipeline" / "weights"
    cached.mkdir(parents=True)
    (cached / "frcnn.safetensors").write_bytes(small_weights.read_bytes())
    assert with_weights(config) == config
    monkeypatch.setenv("XDG_CACHE_HOME", str(alone / "empty"))
    monkeypatch.setenv("SCAN_PIPELINE_WEIGHTS", str(small_weights))
    assert with_weights(config) == config


def test_no_silent_substitute(alone: Path) -> None:
    said = scan("extract", "--images", str(PHOTOS), "--weights", "nowhere.pth")
    assert said.exit_code == 2
    assert "--weights nowhere.pth: no such file" in said.output
    with pytest.raises(PipelineError, match="num_regions=50: for a detector; the starter has 36 windows"):
        with_weights(ExtractConfig(num_regions=50))


def test_a_query_of_the_shipped_run_imports_no_more_than_it_needs(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.parents[1])
    imported = imported_by("retrieve", "--query", "a man on a surfboard", "--device", "cpu")
    assert "tokenizers" in imported
    assert not imported & HEAVY


def test_it_finds_what_is_there(store: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.parents[1])
    first: dict[str, str] = {}
    for split in ("train2017", "val2017"):
        content = json.loads((shared / f"data/coco_mini/annotations/captions_{split}.json").read_text())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        for row in content["annotations"]:
            first.setdefault(names[row["image_id"]], row["caption"])
    photos = [Path(image_id).name for image_id in open_store(store).image_ids]
    queries = tuple(first[name] for name in photos)
    answers = retrieve(RetrieveConfig(query=queries, device="cpu", top=5), report=lambda _: None)
    found = [
        name in {Path(hit.image).name for hit in answer.hits} for name, answer in zip(photos, answers, strict=True)
    ]
    assert sum(found) / len(found) > 0.6  # chance: 0.14


def test_nonsense_is_weak_and_what_is_there_is_not(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.parents[1])
    nonsense = Path(__file__).parents[1] / "nonsense.txt"
    config = RetrieveConfig(runs=("starter",), queries=str(nonsense), top=1, device="cpu")
    answers = retrieve(config, report=lambda _: None)
    assert sum(answer.weak for answer in answers) / len(answers) >= 0.7
    there = ("a man on a surfboard", "a dog", "a pizza on a plate", "people playing baseball", "a bus in the street")
    answers = retrieve(RetrieveConfig(runs=("starter",), query=there, top=1, device="cpu"), report=lambda _: None)
    assert sum(answer.weak for answer in answers) <= 1


def test_the_pieces_of_a_word_count_together(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.parents[1])
    photo = min(PHOTOS.glob("*.jpg")).name
    found = open_search("starter", device="cpu").explain(photo, "A dog's snowboarder, snow.")
    assert found.words == ["A", "dog's", "snowboarder", "snow"]  # pieces: a dog ' s snow ##board ##er , snow .
    model = load_run(SHIPPED, torch.device("cpu")).model
    words = model.encode_captions([found.caption])[0][0]
    regions = model.encode_images(torch.from_numpy(open_store(store)[found.image].features).float()[None])[0]
    with torch.inference_mode():
        _, attention, added = model.explain(regions, words)
    np.testing.assert_allclose(found.attention[2], attention[5:8].mean(0), atol=1e-6)
    np.testing.assert_allclose(found.contributions[2], added[5:8].sum(0), atol=1e-6)
    assert found.uniform == 1 / len(words)  # i2t: of all that a region can look at
    assert found.word_scores.sum() + found.rest == pytest.approx(float(added.sum()), abs=1e-5)


def test_pages_say_that_regions_are_windows(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("--features", str(store), "--run", "starter", "--device", "cpu")
    said = scan("retrieve", "--query", "two people ride horses", "--html", "a.html", "--top", "3", *asked)
    assert said.exit_code == 0, said.output
    page = Path("a.html").read_text()
    assert "Boxes: windows that did most for the score" in page
    assert "run starter" in page
    scan("explain", "--image", "000000214753.jpg", "--caption", "two people ride horses", "--output", "e.html", *asked)
    for text in (page, Path("e.html").read_text()):
        assert "Features by the starter: windows at fixed places, not objects" in text


def test_an_unlikely_class_gives_a_window_no_name(store: Path) -> None:
    opened, photos = open_search("starter", [str(store)], device="cpu"), open_store(store)
    named = 0
    for image in photos.image_ids:
        regions, names = photos[image], class_names_of(opened.collection, image)
        for region in range(len(regions.boxes)):
            assert bool(region_name(regions, region, names)) == (regions.object_scores[region] >= LIKELY)
            named += bool(region_name(regions, region, names))
    assert 0 < named < 0.5 * 36 * len(photos)


def test_the_shipped_run_is_small_and_reads_what_extract_makes(store: Path) -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*")) < 12e6
    shipped = load_run(find_run("starter"), torch.device("cpu"))
    assert shipped.incompatibility(open_store(store)) == ""
    config = load_model(SHIPPED / "best.safetensors").config
    assert (config.feature_dim, config.classes, config.class_dim, config.class_share) == (1280, 1000, 384, 0.3)
    assert config == shipped.config.model
    assert shipped.sha256 == "e551cd01ebd24e1f2396102e523e862aa237a40fd102ec72389d9681f5f3b48d"
    assert shipped.calibration is not None  # of this model
    assert len(list(PHOTOS.glob("*.jpg"))) == (PHOTOS / "ATTRIBUTION.md").read_text().count("photo.gne?id=") == 37


def test_the_shipped_run_knows_the_classes_of_the_network(store: Path) -> None:
    photos, names = open_store(store), load_model(SHIPPED / "best.safetensors").image_encoder.class_names
    assert isinstance(names, ClassNames)
    regions = photos.regions(0)
    with torch.inference_mode():
        sure = names.classifier(torch.from_numpy(regions.features).float()).softmax(-1).max(-1)
    clear = regions.object_scores > 0.3
    assert clear.any()
    np.testing.assert_array_equal(sure.indices.numpy()[clear], regions.object_ids[clear])


def test_the_preset_is_what_no_weights_gives(alone: Path) -> None:
    assert load_config(ExtractConfig, group="extract", config="starter") == with_weights(ExtractConfig())


def test_evaluate_measures_the_shipped_run_and_writes_beside_the_user(alone: Path, store: Path) -> None:
    names = open_store(store).image_ids
    Path("captions.tsv").write_text("".join(f"{name}\ta photo\n{name}\ta dog\n" for name in names))
    said = scan(
        "evaluate", "--run", "starter", "--features", str(store), "--captions", "captions.tsv", "--device", "cpu"
    )
    assert said.exit_code == 0, said.output
    assert "all 37 images / 74 captions" in said.output
    assert (alone / "evaluation/starter/photos_captions_all.json").is_file()
    assert not (SHIPPED / "evaluation").exists()


def test_one_photo_later_gets_the_same_windows(store: Path) -> None:
    opened = open_store(store)
    extractor = extractor_like(opened.extraction, weights=None, device=torch.device("cpu"))
    (regions,) = extractor([read_image(PHOTOS / Path(opened.image_ids[0]).name)])
    assert abs(opened.regions(0).features - regions.features).max() < 0.01
    with pytest.raises(PipelineError, match="another version of the starter"):
        extractor_like({**opened.extraction, "input_size": 224}, weights=None, device=torch.device("cpu"))


def test_a_run_of_ones_own_says_what_is_searched_with_now(store: Path, alone: Path) -> None:
    rows = [f"{image_id}\ta photo of a {n % 7}" for n, image_id in enumerate(open_store(store).image_ids)]
    Path("captions.tsv").write_text("\n".join(rows))
    said = scan(
        "train",
        "--features",
        str(store),
        "--captions",
        "captions.tsv",
        "--device",
        "cpu",
        *SMALL_TRAINING,
        "dev_images=5",
    )
    assert said.exit_code == 0, said.output
    assert "search with this run from now on; with the one that is shipped: --run starter" in said.output


def test_next_names_training_where_there_are_captions(store: Path) -> None:
    assert ("train",) not in next_steps(open_store(store))
    names = [f"{image_id}\ta photo" for image_id in open_store(store).image_ids]
    (store / "captions.tsv").write_text("\n".join(names))
    assert ("train",) in next_steps(open_store(store))
    (store / "captions.tsv").unlink()


def test_no_word_and_no_option_is_left_out_silently(store: Path, tmp_path: Path) -> None:
    search = open_search("starter", [str(store)], weights="detectors/mine.safetensors")
    assert search("a cat " * 100)
    with pytest.raises(PipelineError, match="longer than the run starter reads"):  # its end would not count
        search("a " * 600 + "cat")
    photo = next(PHOTOS.glob("*.jpg"))
    (tmp_path / "other.png").write_bytes(photo.read_bytes() + b" ")
    with pytest.raises(
        PipelineError, match=r"--weights detectors/mine.safetensors: the starter made the run's features"
    ):
        search.find(str(tmp_path / "other.png"))
