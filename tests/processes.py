"""Commands as processes of their own, awaited by what they do: a loaded machine takes longer, and only a hang is a failure.

Progress is output, a change of the folder watched, or computing. A process that does nothing for two minutes, or computes for five
without a visible result, hangs: it is made to print where, and the test fails with all that it said.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
IDLE, BUSY = 120, 300  # seconds without visible progress: of the clock, computing less than a twentieth; of computing
CLI = ["-m", "pipeline.cli"]
SERVICES = ("raylet", "gcs_server", "ray/dashboard", "ray/_private/log_monitor")  # compute a little, whatever happens


class Process:
    """A Python command line at work."""

    def __init__(self, arguments: Sequence[str], folder: Path, *, watched: Path | None = None, **environment: str):
        """
        arguments: of the interpreter, such as [*CLI, "extract", …].
        folder: to run in.
        watched: folder whose files tell of progress; None: `folder`.
        environment: variables beside this process's.
        """
        self.watched = watched or folder
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process object)
        settings = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        # A shell's background jobs, and what they start, ignore Ctrl-C. Not in a preexec_fn: it would run beside the threads that
        # libraries of this process have, and that of gRPC has killed the command so.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=os.environ | settings | environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    @property
    def said(self) -> str:
        """All that it has printed so far."""
        return os.pread(self.log.fileno(), os.fstat(self.log.fileno()).st_size, 0).decode(errors="replace")

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        self._await(lambda: self.ended)
        return self.process.wait()

    def finish(self) -> str:
        """What it said, when it has ended well."""
        assert self.wait() == 0, self.said
        return self.said

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that it does; it must not have ended before."""
        self._await(lambda: condition() or self.ended)
        assert condition(), f"ended with {self.process.poll()} before that:\n{self.said}"

    def kill(self) -> None:
        """As nothing can be prepared for."""
        self.process.kill()
        self.process.wait()

    def descendants(self) -> list[tuple[int, str]]:
        """Process ids and command lines of what it started, directly or not."""
        return _descendants(self.process.pid)

    def _await(self, condition: Callable[[], object]) -> None:
        shown, since, computed = None, time.monotonic(), 0.0
        while not condition():
            now = (len(self.said), sorted(path.name for path in self.watched.glob("**/[!.]*")))
            if now != shown:
                shown, since, computed = now, time.monotonic(), self._computed()
            idle, busy = time.monotonic() - since, self._computed() - computed
            if (idle > IDLE and busy < idle / 20) or busy > BUSY:
                self._fail(f"no progress in {idle:.0f} s, {busy:.0f} s of them computing")
            time.sleep(0.02)

    def _computed(self) -> float:
        """Seconds of computing, of it and of what it started."""
        family = [(self.process.pid, ""), *self.descendants()]
        return sum(_computed(pid) for pid, line in family if not any(name in line for name in SERVICES))

    def _fail(self, why: str) -> None:
        family = [*self.descendants(), (self.process.pid, "itself")]
        for pid, _ in family:  # faulthandler prints the stacks of a Python process that is aborted
            _send(pid, signal.SIGABRT)
        time.sleep(1)
        for pid, _ in family:
            _send(pid, signal.SIGKILL)
        raise AssertionError(f"{why}: {family}\n{self.said}")


def _descendants(parent: int) -> list[tuple[int, str]]:
    try:
        found = []
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [(int(child), line), *_descendants(int(child))]
        return found
    except OSError:  # ended meanwhile
        return []


def await_end(pids: Sequence[int]) -> None:
    """Wait until processes that are not ours to wait for have ended."""
    since = time.monotonic()
    while left := [pid for pid in pids if _stat(pid)[:1] not in ([], ["Z"])]:
        assert time.monotonic() - since < IDLE, f"{left} are still there"
        time.sleep(0.02)


def _stat(pid: int) -> list[str]:
    """Its state, and the numbers after it; none once it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _computed(pid: int) -> float:
    if not (fields := _stat(pid)):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
