"""A process that hangs fails its test with what it said and where it stands; one that is slow does not."""

from pathlib import Path

import pytest

from tests import processes
from tests.processes import Process


@pytest.mark.parametrize(("limit", "program"), [("IDLE", "time.sleep(1000)"), ("BUSY", "while True: pass")])
def test_a_hang_ends_with_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, program: str) -> None:
    monkeypatch.setattr(processes, limit, 0.5)
    process = Process(["-c", f"import time\nprint('begun', flush=True)\n{program}"], tmp_path)
    with pytest.raises(AssertionError, match=r'(?s)no progress in .*\nbegun\n.*File "<string>", line 3'):
        process.finish()
    assert process.ended


def test_what_goes_on_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "IDLE", 0.5)
    program = "import time, pathlib\nfor n in range(12):\n    time.sleep(0.1)\n    pathlib.Path(str(n)).touch()\nprint('done')"
    process = Process(["-c", program], tmp_path)
    process.until((tmp_path / "3").is_file)
    assert process.finish() == "done\n"
    with pytest.raises(AssertionError, match="ended with 0 before that:\ndone"):
        process.until((tmp_path / "99").is_file)
