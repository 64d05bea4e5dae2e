"""When memory is given back."""

import subprocess
import sys

from service.engine.malloc import Trimmer


def test_memory_is_trimmed_after_growth() -> None:
    megabytes = [500.0]
    trimmed: list[float] = []

    def give_back() -> None:
        trimmed.append(megabytes[0])
        megabytes[0] = max(500.0, megabytes[0] - 1000)

    trimmer = Trimmer(lambda: int(megabytes[0] * 1e6), give_back)
    for held in (500, 600, 660, 1500, 520, 660, 670, 1700, 760, 800, 906, 500, 660, 670):
        megabytes[0] = held
        trimmer()
    assert trimmed == [500, 1500, 670, 1700, 906, 670], "at first, and at each growth by a fifth and 64 MB"


def test_trimming_returns_freed_memory() -> None:
    """In a process of its own: other tests leave freed memory that a large allocation may reuse."""
    script = (
        "from service.engine.malloc import resident, trim\n"
        "before = resident()\n"
        "kept = bytearray(b'x' * 50_000_000)\n"
        "full = resident()\n"
        "del kept\n"
        "trim()\n"
        "print(before, full, resident())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, full, after = map(int, done.stdout.split())
    assert before > 5_000_000
    assert full > before + 40_000_000
    assert after < before + 40_000_000
