from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from configs.fields import knob
from pipeline.config import config_diff, find_preset, load_config, save_config
from pipeline.errors import PipelineError
from pipeline.fields import CommandConfig, option


@dataclass(frozen=True)
class Section:
    rate: float = 0.1
    steps: tuple[int, ...] = (15,)


@dataclass(frozen=True)
class Command:
    images: tuple[str, ...] = ()
    name: str = ""
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
    assert config == Command(("a", "b"), "", "cpu", {"min_size": 300}, Section(3e-4, (1, 2)))


def test_saved_configurations_read_back(tmp_path: Path) -> None:
    config = Command(("photos of 2026",), "", None, {"anchor_sizes": [64, 128]}, Section(2e-4, ()))
    save_config(config, tmp_path / "config.yaml")
    assert load_config(Command, group="train", config=str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("section.rat=1", r"section\.rat=1: unknown key section\.rat; did you mean section\.rate\?"),
        ("zzzz=1", "unknown key zzzz; known keys: images, name, device, detector, section.rate, section.steps"),
        ("section.rate=fast", "section.rate=fast: expected a number"),
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
    [
        ("a: [", "not readable as YAML"),
        ("- 1", "expected a mapping"),
        ("nope: 1", "unknown key nope"),
        ("section.rate: 1", "key section.rate; expected rate below section:"),
    ],
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


def test_a_difference_names_the_nested_key_and_both_values() -> None:
    found = {"detector": {"min_size": 600, "same": 1}, "weights": "a"}
    wanted = {"detector": {"min_size": 300, "same": 1}, "weights": "a", "more": True}
    assert config_diff(found, wanted, ("store", "run")) == [
        "detector.min_size: store 600, run 300",
        "more: store nothing, run True",
    ]


@dataclass(frozen=True)
class Limited(CommandConfig):
    count: int = option(3, "A count.", min=1, max=9)
    rate: float = knob(0.5, "A rate.", above=0, below=1)
    kind: str = knob("a", "A kind.", choices=("a", "b"))
    sizes: tuple[int, ...] = knob((1,), "Sizes.", min=1)
    flag: bool = knob(False, "A flag.")
    preset: str = knob("", "The preset.")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("count", "0", "expected at least 1"),
        ("count", "10", "expected at most 9"),
        ("count", "true", "expected a whole number"),
        ("count", "1.5", "expected a whole number"),
        ("rate", "0", "expected more than 0"),
        ("rate", "1", "expected less than 1"),
        ("rate", ".nan", "expected a finite number"),
        ("rate", "nan", "expected a finite number"),
        ("rate", "yes", "expected a number"),
        ("kind", "c", "expected one of a, b"),
        ("sizes", "[1, 0]", "expected at least 1"),
        ("sizes", "1", r"expected a list, such as \[a, b\]"),
        ("flag", "1", "expected true or false"),
    ],
)
def test_one_check_for_options_yaml_and_key_value(tmp_path: Path, key: str, value: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"{key}: {value}")
    with pytest.raises(PipelineError, match=f"mine.yaml: {key}: .*{message}"):
        load_config(Limited, config=str(path))
    with pytest.raises(PipelineError, match=message) as error:
        load_config(Limited, overrides=[f"{key}={value}"])
    assert str(error.value).startswith(f"{key}={value}"[:60])
    if key in ("count", "rate", "kind") and value not in ("true", "yes", ".nan"):
        with pytest.raises(PipelineError, match=f"--{key} .*: {message}"):
            load_config(Limited, options={key: value})


def test_values_are_checked_in_python_as_well() -> None:
    with pytest.raises(PipelineError, match="count 0: expected at least 1"):
        Limited(count=0)
    with pytest.raises(PipelineError, match="rate nan: expected a finite number"):
        Limited(rate=float("nan"))


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "???", "2014", "a: b: [", "null", "${", "été", "caf\udce9"])
def test_text_stays_as_it_was_typed(tmp_path: Path, text: str) -> None:
    """Nothing is expanded, and a name of digits is a name."""
    by_override = load_config(Command, group="train", overrides=[f"name={text}"])
    by_option = load_config(Command, group="train", options={"name": text, "images": (text,)})
    assert by_override.name == by_option.name == by_option.images[0] == text
    save_config(by_option, tmp_path / "saved.yaml")
    assert load_config(Command, group="train", config=str(tmp_path / "saved.yaml")) == by_option


def test_the_presets_name_is_recorded_unless_the_file_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("count: 2")
    (tmp_path / "config.yaml").write_text("preset: theirs")
    assert load_config(Limited, config=str(tmp_path / "mine.yaml")).preset == "mine"
    assert load_config(Limited, config=str(tmp_path / "config.yaml")).preset == "theirs"


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: " * 2000, b"[" * 5000, b"count: 1\ncount: 2", b"? [a]\n: 1"])
def test_files_that_are_no_yaml_are_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"bad\.yaml: ") as error:
        load_config(Limited, config=str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["010", "09", "1:30", "1e3", "-.5", "+7", "0x10", "1_0", ".inf", "no", "~", "2014"])
def test_numbers_are_read_in_files_as_on_the_command_line_and_text_stays_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"section: {{steps: [{text}]}}\n")
    read = []
    for source in (
        {"config": str(path)},
        {"overrides": [f"section.steps=[{text}]"]},
        {"options": {"section.steps": (text,)}},
    ):
        try:
            read.append(load_config(Command, **source).section.steps)
        except PipelineError:
            read.append(None)  # no number to any of them
    assert read == [{"010": (10,), "09": (9,), "+7": (7,), "2014": (2014,)}.get(text)] * 3
    save_config(Command(images=(text,), name=text), tmp_path / "config.yaml")
    assert load_config(Command, config=str(tmp_path / "config.yaml")) == Command(images=(text,), name=text)


def test_yaml_numbers_of_version_1_2() -> None:
    assert load_config(Command, overrides=["detector.rate=3e-4"]).detector == {"rate": 3e-4}


def test_a_configuration_that_cannot_be_written_stays_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    save_config(Command(("a",), "", None, {}, Section(1.0, ())), path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save_config(Command(("b",), "", None, {}, Section(1.0, ())), path)
    assert path.read_bytes() == before
