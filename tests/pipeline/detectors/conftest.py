"""A detector that was trained for a moment, on photos of coloured rectangles."""

from pathlib import Path

import pytest
import torch

from tests.coloured_boxes import SCRATCH, SHORT, command, draw_world
from tests.world import scan


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dozen photos and a detector that was trained for a moment: detectors/first."""
    folder = tmp_path_factory.mktemp("boxes")
    draw_world(folder, 12)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        said = scan(*command(*SCRATCH, *SHORT, "--run", "detectors/first"))
    torch.set_num_threads(threads)
    assert said.exit_code == 0, said.output
    (folder / "said.txt").write_text(said.output)
    return folder


@pytest.fixture
def inside(boxes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(boxes)
    return boxes
