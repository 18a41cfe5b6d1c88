"""The READMEs are true: their commands exist with their options, their files are there, their Python runs."""

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from tests.photos import write_photos

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()
PACKAGES = ("pipeline", "detector", "matcher")
READMES = [REPOSITORY / "README.md", *(path for name in PACKAGES for path in (REPOSITORY / name).rglob("README.md"))]
READMES.append(REPOSITORY / "CONTRIBUTING.md")
ALL_READMES = "\n".join(path.read_text() for path in READMES)
DOCUMENTS = [*READMES, *(REPOSITORY / "configs").rglob("*.yaml"), *(REPOSITORY / "docker").iterdir()]
COMMANDS = sorted(
    {
        match.strip()
        for path in DOCUMENTS
        for match in re.findall(r"^(?:#|    )? *(scan-pipeline [a-z][^#\n`]*)", path.read_text(), re.MULTILINE)
        if not match.startswith("scan-pipeline says")
    }
)


def test_commands_were_found() -> None:
    assert len(COMMANDS) > 30
    assert 'scan-pipeline retrieve --query "two dogs play by a tree"' in COMMANDS


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_and_their_options_exist(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    command = main.commands[name]
    context = command.make_context(name, arguments, resilient_parsing=False)
    assert isinstance(context, click.Context)
    for option in ("config",):
        value = context.params.get(option)
        if value is not None:
            assert (REPOSITORY / "configs" / name / f"{value}.yaml").is_file()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tests|configs|docker)/[\w/.]+)`", ALL_READMES))))
def test_files_that_are_named_exist(path: str) -> None:
    assert (REPOSITORY / path).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z-]+)", ALL_READMES))))
def test_make_targets_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("config", sorted((REPOSITORY / "configs/extract").glob("*.yaml")), ids=lambda path: path.stem)
def test_extraction_presets_load(config: Path) -> None:
    from pipeline.config import load_config
    from pipeline.extraction.job import ExtractConfig

    assert load_config(ExtractConfig, group="extract", config=config.stem).num_regions == (
        12 if config.stem == "demo" else 36
    )


def test_the_python_example_runs(
    tmp_path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "train2014", 12)
    lines = [f"{index:03}.jpg\ta dog and {index} trees" for index in range(12)]
    (tmp_path / "train2014/captions.tsv").write_text("\n".join(lines))
    (tmp_path / "frcnn-vg.safetensors").write_bytes(small_weights.read_bytes())
    for command in (
        "extract --images train2014 --weights frcnn-vg.safetensors --workers 0 --device cpu",
        "train --epochs 1 --batch-size 4 training.min_word_count=1 model.embed_dim=16",
    ):
        said = CliRunner().invoke(main, command.split())
        assert said.exit_code == 0, said.output
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    capsys.readouterr()
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert all(re.match(r"-?\d\.\d{3} \S+/train2014/\d{3}\.jpg attribute", line) for line in printed), printed
