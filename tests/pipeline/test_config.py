from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import differences, find_preset, load_config, save_config
from pipeline.errors import PipelineError


@dataclass(frozen=True)
class Section:
    rate: float = 0.1
    steps: tuple[int, ...] = (15,)


@dataclass(frozen=True)
class Command:
    images: tuple[str, ...] = ()
    device: str | None = None
    detector: dict[str, Any] = field(default_factory=dict)
    section: Section = field(default_factory=Section)


def test_later_sources_win_and_tuples_stay_tuples(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("section: {rate: 0.2, steps: [1, 2]}\ndevice: cuda\n")
    config = load_config(
        Command,
        group="train",
        config=str(path),
        overrides=["section.rate=3e-4", "detector.min_size=300"],
        options={"images": ("a", "b"), "device": "cpu", "section.steps": None},
    )
    assert config == Command(("a", "b"), "cpu", {"min_size": 300}, Section(3e-4, (1, 2)))


def test_saved_configurations_read_back(tmp_path: Path) -> None:
    config = Command(("photos of 2026",), None, {"anchor_sizes": [64, 128]}, Section(2e-4, ()))
    save_config(config, tmp_path / "config.yaml")
    assert load_config(Command, group="train", config=str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("section.rat=1", r"section\.rat=1: unknown key section\.rat; did you mean section\.rate\?"),
        ("zzzz=1", "unknown key zzzz; known keys: images, device, detector, section.rate, section.steps"),
        ("section.rate=fast", "section.rate=fast: Value 'fast'"),
        ("section.rate", "expected KEY=VALUE"),
        ("section=3", "section=3: "),
        ("section.rate=[1", "not readable as YAML"),
    ],
)
def test_mistakes_are_named_as_the_user_wrote_them(override: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message) as error:
        load_config(Command, group="train", overrides=[override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "not readable as YAML"), ("- 1", "expected a mapping"), ("nope: 1", "unknown key nope")],
)
def test_bad_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(PipelineError, match=message) as error:
        load_config(Command, group="train", config=str(path))
    assert str(path) in str(error.value)


def test_presets_are_found_by_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_preset("coco_i2t_lse", "train").is_file()
    with pytest.raises(PipelineError, match=r"neither a file nor a preset; presets are: .*f30k_t2i_avg"):
        find_preset("coco_i2t", "train")
    with pytest.raises(PipelineError, match=r"mine\.yaml: no such configuration file"):
        find_preset("mine.yaml", "train")


def test_differences_name_the_nested_key_and_both_values() -> None:
    found = {"detector": {"min_size": 600, "same": 1}, "weights": "a"}
    wanted = {"detector": {"min_size": 300, "same": 1}, "weights": "a", "more": True}
    assert differences(found, wanted) == ["detector.min_size: found 600, asked 300", "more: found nothing, asked True"]
