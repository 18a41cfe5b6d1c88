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
        self.path = run_dir / METRICS
        self._run_dir, self._step, self._writes = run_dir, step, write
        if not write:
            return
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def __enter__(self) -> "MetricsLog":
        if not self._writes:
            return self
        from torch.utils.tensorboard import SummaryWriter

        self._file = self.path.open("a")
        self._events = SummaryWriter(str(self._run_dir), purge_step=self._step + 1 if self._step else None)
        return self

    def __exit__(self, *_: object) -> None:
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
