"""The wheel, built and used from a folder where nothing else of the project is."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("configs", "detector", "matcher", "pipeline")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, cwd=REPOSITORY, check=True
    ).stdout.split("\n")
    for name in filter(None, tracked):  # a build leaves files beside its sources
        if (REPOSITORY / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((REPOSITORY / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(folder / "source")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "deprecated" not in built.stdout + built.stderr
    assert len(list(folder.glob("*.tar.gz"))) == 1
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    folder = wheel.parent / "installed"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder),
        str(wheel),
    ]
    subprocess.run(command, check=True)
    return folder


def use(installed: Path, *arguments: str, before: str = "", absent: str = "none") -> subprocess.CompletedProcess[str]:
    """The command, as the installed script starts it; torch and the others come from this environment."""
    path = os.pathsep.join(filter(None, [before, str(installed)]))
    work = installed.parent / "work"
    work.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(work / "cache")}
    code = f"import sys; sys.modules[{absent!r}] = None; from pipeline.start import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=work, env=environment, check=False)


def test_it_holds_what_the_packages_hold(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    apart = ("README.md", "pipeline/demo/example.jpg")  # documentation of the sources
    expected = {
        name for name in tracked.stdout.split() if not name.endswith(apart) or name.startswith("detector/names")
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name and ".data/" not in name}
    assert found == expected


def test_it_works_from_another_folder_without_the_detector(installed: Path, small_weights: Path) -> None:
    """detectron2 apart, which no package index has: all but the detector works, and the command that adds it is named."""
    demo = use(installed, "demo", "--device", "cpu", absent="detectron2")
    assert demo.returncode == 0, demo.stderr
    photos = str(installed / "pipeline/starter/photos")
    for command in (
        ["extract", "--images", photos, "--device", "cpu", "--workers", "0", "--limit", "4"],
        ["retrieve", "--query", "a dog in the snow", "--html", "found.html"],
        ["train", "--list"],
    ):
        said = use(installed, *command, absent="detectron2")
        assert said.returncode == 0, said.stderr
    assert "f30k_i2t_avg" in said.stdout
    detector = ["--weights", str(small_weights), "--output", "other"]
    said = use(installed, "extract", "--images", photos, *detector, absent="detectron2")
    script = installed / "share/scan-pipeline/install_detectron2.sh"
    assert said.stderr.endswith(f"detectron2: not installed; install it with: bash {script} {sys.executable}\n")
    assert script.is_file()


def test_another_projects_package_is_told(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "detector").mkdir()
    (tmp_path / "detector/__init__.py").touch()
    said = use(installed, "--help", before=str(tmp_path))
    assert said.returncode == 2
    assert said.stderr.startswith("error: the package detector is not this project's but ")
    assert said.stderr.count("\n") == 1
