"""Memory stays flat however many photos there are. tests/benchmarks/memory.py measures the same over 5,000."""

import pytest

from tests.benchmarks.memory import measure


@pytest.mark.slow
def test_memory_and_open_files_do_not_grow() -> None:
    samples = measure(320, parts=2)
    early, late = samples[0], samples[-1]
    assert late.photos >= 1.5 * early.photos
    assert late.megabytes < 1.03 * early.megabytes + 10, samples
    assert late.open_files <= early.open_files + 1, samples
    assert late.shared_memory <= early.shared_memory + 32, samples  # 96 more photos, 32 of them on their way at most
