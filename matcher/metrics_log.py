"""The numbers of a training run: `metrics.jsonl` for programs, TensorBoard events for people."""

import json
from pathlib import Path
from typing import Any

from configs.files import write_atomically

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends rows; a resumed run drops the rows written after the last checkpoint.

    With `write` off it does nothing: of several processes, one writes the log.
    """

    def __init__(self, run_dir: Path, step: int, *, write: bool = True):
        self._writes = write
        if not write:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = run_dir / METRICS
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = path.open("a")
        self._events = SummaryWriter(str(run_dir), purge_step=step + 1 if step else None)

    def close(self) -> None:
        """Nothing is written after it."""
        if self._writes:
            self._file.close()
            self._events.close()

    def write(self, step: int, split: str, **values: Any) -> None:
        """One row: {"step": …, "split": "train" or "dev", …}."""
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`, up to the first line that is none: the last one may be cut short."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or type(row.get("step")) is not int or row.get("split") not in ("train", "dev"):
            break
        rows.append(row)
    return rows
