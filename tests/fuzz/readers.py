"""Fuzz a reader with libFuzzer: python -m tests.fuzz.readers image -max_total_time=300

Needs the extra: pip install '.[fuzz]'. What it finds goes to tests/fuzz/found/<reader>/, where tests/pipeline/inputs/test_hostile_files.py
reads it ever after.
"""

import sys
import tempfile
from pathlib import Path

import atheris

FOUND = Path(__file__).parent / "found"

with atheris.instrument_imports(include=["pipeline", "PIL"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"usage: python -m tests.fuzz.readers {{{','.join(TARGETS)}}} [libFuzzer options]")
    name = sys.argv.pop(1)
    target, seeds = TARGETS[name]
    (FOUND / name).mkdir(parents=True, exist_ok=True)
    corpus = Path(tempfile.mkdtemp())
    for index, seed in enumerate(seeds()):
        (corpus / str(index)).write_bytes(seed)
    options = [f"-artifact_prefix={FOUND / name}/", "-rss_limit_mb=4096", "-timeout=20"]
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:], str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
