"""What every command shares: help, lists, what reaches the terminal, and one line for every mistake."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector.errors import DetectorError
from matcher.errors import MatcherError
from pipeline.cli import main
from pipeline.command_line import SECTIONS, Command, say_next
from pipeline.config import load_config
from pipeline.errors import PipelineError, printable
from pipeline.extraction.job import ExtractConfig
from pipeline.fields import leaves
from pipeline.runs import TrainConfig
from pipeline.train_detector import TrainDetectorConfig

COMMANDS = {name: command for name, command in main.commands.items() if isinstance(command, Command)}
REPOSITORY = Path(__file__).resolve().parents[2]
NASTY = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=20),
    st.sampled_from(["", "-1", "0", "99999999999999999999", "nan", "inf", "true", "null", "${oc.env:HOME}", "???", "/dev/null", "a\nb"]),
)  # fmt: skip
YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def run(*words: str) -> tuple[int, str, str]:
    said = CliRunner().invoke(main, list(words), catch_exceptions=False)
    return said.exit_code, said.stdout, said.stderr


def test_the_help_groups_commands_and_cuts_no_summary() -> None:
    _, out, _ = run("--help")
    positions = [out.index(f"{section}:") for section in SECTIONS]
    assert positions == sorted(positions)
    assert "..." not in out.split("Search your photos:")[1]
    assert "Optional first step: train the region detector." in out
    assert "_SCAN_PIPELINE_COMPLETE=bash_source" in out


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_ends_with_an_example_that_parses(name: str) -> None:
    import shlex

    code, out, _ = run(name, "--help")
    assert code == 0
    assert out.rstrip().endswith(COMMANDS[name].example)
    _, verb, *words = shlex.split(COMMANDS[name].example)
    assert verb == name
    COMMANDS[name].make_context(name, words)


@pytest.mark.parametrize("name", ["extract", "train", "train-detector"])
def test_presets_and_fields_are_listed(name: str) -> None:
    code, out, _ = run(name, "--list")
    assert code == 0
    assert {path.stem for path in (REPOSITORY / "configs" / name).glob("*.yaml")} <= set(out.split())
    schema = COMMANDS[name].schema
    for key, _, field in leaves(schema):
        assert f"  {key}: " in out
        assert field.metadata.get("help"), f"{key} has no help"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("extract --num-regions 100000", "--num-regions 100000: expected at most 1000"),
        ("evaluate --folds -3", "--folds -3: expected at least 0"),
        ("evaluate --bootstrap -5", "--bootstrap -5: expected at least 0"),
        ("evaluate --bootstrap 1", "--bootstrap 1: expected at least 40, such as 1000"),
        ("train --epochs 1_0", "--epochs 1_0: expected a whole number"),
        ("train training.epochs=１０", "training.epochs=１０: expected a whole number"),
        ("train training.margin=0_1.5", "training.margin=0_1.5: expected a number"),
        ("train training.seed=-1", "training.seed=-1: expected at least 0"),
        ("train dev_images=-1", "dev_images=-1: expected at least 1"),
        ("train training.grad_clip=-1", "training.grad_clip=-1: expected at least 0"),
        ("train training.margin=-5", "training.margin=-5: expected at least 0"),
        ("train training.learning_rate=nan", "training.learning_rate=nan: expected a finite number"),
        ("train model.embed_dim=2000000000", "model.embed_dim=2000000000: expected at most 65536"),
        ("app --port 99999", "--port 99999: expected at most 65535"),
        ("retrieve --nope", "No such option '--nope'"),
        ("nope", "No such command 'nope'"),
        ("--nope", "No such option '--nope'"),
        ("explain --image a.jpg", "Missing option '--caption'"),
        ("train --epochs ${oc.env:HOME}", "--epochs ${oc.env:HOME}: expected a whole number"),
        ("retrieve --queries a.txt --query dog --queries=b.txt", "--queries is given twice; give it once"),
        ("explain --image a --caption b --image c", "--image is given twice; give it once"),
        ("train --config small_cpu --config t2i_mean", "--config is given twice; give it once"),
        ("evaluate --verify --verify", "--verify is given twice; give it once"),
        ("inspect a --verify --no-verify", "--verify is given twice; give it once"),
        ("train training.margin=0.3 --epochs 1 training.margin=0.4", "training.margin is given twice; give it once"),
    ],
)
def test_out_of_range_is_one_line(command: str, message: str) -> None:
    code, out, err = run(*command.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_escape_sequences_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b]0;owned\x07\r\u202edog\x9b\n\tb") == r"a\x1b]0;owned\x07\r\u202edog\x9b" + "\n\tb"
    code, out, err = run("inspect", "x\x1b[31m\x07")
    assert code == 2
    assert "\x1b" not in out + err
    assert r"x\x1b[31m\x07" in err


def test_next_steps_are_quoted_for_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    say_next(("inspect", "features/my photos; rm -rf x"))
    assert capsys.readouterr().out == "next:\n  scan-pipeline inspect 'features/my photos; rm -rf x'\n"


@pytest.mark.parametrize(("name", "continues"), [("train", True), ("evaluate", False)])
def test_ctrl_c_promises_to_continue_only_where_it_does(
    name: str, continues: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS[name], "callback", interrupted)
    code, _, err = run(name)
    assert code == 130
    assert ("run the same command again to continue" in err) is continues


def test_any_locale_prints_any_name(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "LC_ALL": "POSIX",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    command = [sys.executable, "-m", "pipeline.cli", "inspect", "été"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")
    assert b"Traceback" not in done.stderr


RUN = "$e $\\frac{ \u00fc\u732b"
LINES = [
    ["retrieve", "--query", "a dog \u732b by a tree", "--picture", "a.png", "--html", "a.html"],
    [
        "explain",
        "--image",
        "COCO_train2014_000000000003.jpg",
        "--caption",
        "a $dog$ \u732b by a tree",
        "--output",
        "e.png",
    ],
    ["evaluate", "--html", "v.html", "--bootstrap", "40"],
    ["plot", "--output", "curves.png"],
]


def test_run_names_of_any_letters_in_any_locale(inside: Path, tmp_path: Path) -> None:
    """Neither mathematics in pictures nor letters that the terminal does not have."""
    shutil.copytree(inside, tmp_path / "copy")
    (tmp_path / "copy/runs/t2i_mean").rename(tmp_path / "copy/runs" / RUN)
    program = (
        "import json, os, sys\nfrom pipeline.cli import main\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    line = [os.fsdecode(word.encode()) for word in line]  # as a shell hands them over\n"
        "    code = main(line, standalone_mode=False)\n    code and sys.exit(code)"
    )
    lines = [[*line, "--run", f"runs/{RUN}"] + (["--device", "cpu"] if line[0] != "plot" else []) for line in LINES]
    locale = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(lines)], cwd=tmp_path / "copy",
        env=os.environ | locale | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    for name in ("a.png", "a.html", "e.png", "v.html", "curves.png"):
        assert (tmp_path / "copy" / name).stat().st_size > 0


def ends_well_or_in_one_line(name: str, data: st.DataObject, values: st.SearchStrategy[str], *always: str) -> None:
    """Whatever is typed. The options in `always` are given, others now and then."""
    command = COMMANDS[name]
    words = []
    for parameter in command.get_params(command.make_context(name, [], resilient_parsing=True)):
        if parameter.param_type_name == "argument":
            words += data.draw(st.lists(values, min_size=1, max_size=2 if parameter.nargs < 0 else 1))
        elif parameter.name in always or (
            parameter.name not in ("help", "list", "device", "weights", "init")
            and data.draw(st.integers(0, 3 if always else 1)) == 0
        ):
            words += [parameter.opts[0]] + ([] if getattr(parameter, "is_flag", False) else [data.draw(values)])
    code, _, err = run(name, *words)
    assert code in (0, 1, 2)
    if code == 2:
        assert [line.startswith("error: ") for line in err.splitlines()].count(True) == 1
        assert "Traceback" not in err


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"doctor"}))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_arbitrary_options_end_well_or_in_one_line(
    name: str, data: st.DataObject, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "demo":  # needs nothing, and would take a minute each time
        monkeypatch.setattr(COMMANDS[name], "callback", lambda config: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # else of all later tests
    ends_well_or_in_one_line(name, data, NASTY)


THERE = st.sampled_from(
    ["features/train2014", "runs/t2i_mean", "coco/train2014", "coco/annotations/captions_train2014.json", "a dog", "zzz",
     "COCO_train2014_000000000003.jpg", "coco/train2014/COCO_train2014_000000000004.jpg", "a dog zzz", "out.png", "out.html",
     "new/out.tsv", "1", "2", "3", "all", "dev", "tsv", "npz", "original", "t2i", "i2t", "runs", ".", "starter"]
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "always"),
    [
        ("retrieve", ["query"]),
        ("retrieve", ["image"]),
        ("explain", ["image", "caption"]),
        ("evaluate", []),
        ("inspect", []),
        ("export-features", ["format", "output"]),
        ("plot", ["output"]),
        ("index", []),
    ],
)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_arbitrary_options_where_there_is_a_project(
    name: str, always: list[str], data: st.DataObject, inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With names of what is there: many of these do their work."""
    if name not in COMMANDS:
        pytest.skip(f"no command {name}")
    if not (tmp_path / "copy").exists():
        shutil.copytree(inside, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    ends_well_or_in_one_line(name, data, st.one_of(THERE, THERE, THERE, NASTY), *always)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(manifest=YAML, data=YAML, weights=NASTY)
def test_doctor_examines_whatever_lies_there(
    manifest: object, data: object, weights: str, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.doctor import report

    monkeypatch.setattr(report, "_probe", lambda: iter(()))
    sections = {
        name: checks
        for name, checks in report.SECTIONS.items()
        if checks.__name__ in ("_weights", "_stores", "_runs", "_disk")
    }
    monkeypatch.setattr(report, "SECTIONS", sections)
    for path, content in (
        ("features/x/manifest.json", manifest),
        ("runs/y/data.json", data),
        ("runs/y/best.safetensors", 0),
    ):
        (empty / path).parent.mkdir(parents=True, exist_ok=True)
        (empty / path).write_text(json.dumps(content, default=str))
    with contextlib.suppress(ValueError, OSError):  # what no environment holds
        monkeypatch.setenv("SCAN_PIPELINE_WEIGHTS", weights)
    code, out, err = run("doctor")
    assert code in (0, 1)
    assert "cannot be examined" not in out
    assert "Traceback" not in out + err


def test_a_user_without_a_home_gets_one_line(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("SCAN_PIPELINE_WEIGHTS")
    monkeypatch.setattr(Path, "home", no_home)
    (empty / "photos").mkdir()
    (empty / "photos/a.jpg").write_bytes(b"not yet read")
    code, _, err = run("extract", "--images", "photos")
    assert code == 2
    assert "set HOME or XDG_CACHE_HOME, or give --weights FILE" in err


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("SCAN_PIPELINE_WEIGHTS", str(tmp_path / "none.safetensors"))
    return tmp_path


@pytest.mark.parametrize("schema", [ExtractConfig, TrainConfig, TrainDetectorConfig])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_yaml_of_every_type_is_read_or_refused(schema: type, data: st.DataObject, tmp_path: Path) -> None:
    import yaml

    key = data.draw(st.sampled_from([key for key, _, _ in leaves(schema)]))
    value = data.draw(YAML)
    path = tmp_path / "any.yaml"
    content: object = value
    for part in reversed(key.split(".")):
        content = {part: content}
    path.write_text(yaml.safe_dump(data.draw(st.sampled_from([content, value]))))
    for sources in ({"config": str(path)}, {"overrides": [f"{key}={data.draw(NASTY)}"]}):
        with contextlib.suppress(PipelineError, MatcherError, DetectorError):
            load_config(schema, **sources)


def test_an_empty_argument_is_refused() -> None:
    said = CliRunner().invoke(main, ["import-features", ""])
    assert (said.exit_code, said.stderr.count("\n")) == (2, 1), said.stderr
