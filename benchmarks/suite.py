"""Run the commands that RESULTS.md quotes, and put their output there, with machine and versions.

    scripts/bench                       all of them: most of a day on two cores
    scripts/bench network large         those of benchmarks.speed.network and benchmarks.speed.large

Output goes between two marks below the command and replaces what was there. The text around it stays. Both
sides of every ratio are measured by the same command.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "RESULTS.md"
PACKAGES = ("torch", "faiss-gpu", "numpy", "openvino", "ray", "pymilvus", "milvus-lite")
BEGIN, END = "<!-- measured -->", "<!-- end -->"
COMMANDS = re.compile(r"(?m)^(?:    (?:python -m benchmarks\.|loci |pip |\w+=).*\n)+")
"""Lines of RESULTS.md that are run together: a benchmark, and the commands before it that prepare it."""


def blocks(text: str) -> list[str]:
    """Return each block of commands that has a benchmark, once."""
    found = (match[0] for match in COMMANDS.finditer(text))
    return list(dict.fromkeys(block for block in found if scripts_of(block)))


def scripts_of(block: str) -> set[str]:
    return set(re.findall(r"benchmarks\.\w+\.(\w+)", block))


def with_result(text: str, block: str, result: str) -> str:
    """Return the text of RESULTS.md with the output of a block below it."""
    before, found, after = text.partition(block)
    assert found, f"RESULTS.md has no longer {block}"
    after = re.sub(rf"\A\s*{BEGIN}.*?{END}\n", "", after, count=1, flags=re.DOTALL)
    return f"{before}{block}\n{BEGIN}\n{result}\n{END}\n{after}"


def shown(output: str) -> str:
    """Return a command's output as Markdown: tables unchanged, other lines indented."""
    lines = output.strip("\n").splitlines()
    return "\n".join(line if line.startswith("|") or not line.strip() else f"    {line}" for line in lines)


def machine() -> str:
    """Processor, memory, GPU and system."""
    model, fast = platform.processor() or platform.machine(), ""
    if Path("/proc/cpuinfo").exists():
        told = Path("/proc/cpuinfo").read_text()
        names = re.findall(r"^model name\s*: (.*)$", told, re.MULTILINE)
        model = names[0] if names else model
        flags = [flag for flag in ("avx512_vnni", "avx512_bf16", "amx_int8") if f" {flag}" in told]
        fast = f" ({', '.join(flags)})" if flags else ""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores of {model}{fast}, {memory:.0f} GiB, {gpu}; {platform.platform()}"


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except ImportError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = blocks(RESULTS.read_text())
    names = sorted(set().union(*map(scripts_of, known)))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--list", action="store_true", help="say what would run")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no benchmark {', '.join(sorted(unknown))} in RESULTS.md: {', '.join(names)}")
    chosen = [block for block in known if not options.names or scripts_of(block) & set(options.names)]
    if options.list:
        print("\n".join(chosen))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "here"  # commands write their files here
        folder.mkdir()
        (folder / "benchmarks").symlink_to(RESULTS.parent)
        (folder.parent / "shared").symlink_to(RESULTS.parents[2] / "shared")
        failed = [block for block in chosen if not run(block, folder)]
    print(f"{RESULTS}: {len(chosen) - len(failed)} of {len(chosen)} measured")
    sys.exit(bool(failed))


def run(block: str, folder: Path) -> bool:
    """Run the commands of a block in a folder; return their output, or nothing if one fails."""
    print(block, file=sys.stderr)
    started = time.perf_counter()
    commands = "\n".join(line.strip() for line in block.splitlines())
    done = subprocess.run(["bash", "-euc", commands], stdout=subprocess.PIPE, text=True, cwd=folder)
    if done.returncode:
        print(f"ended with {done.returncode}", file=sys.stderr)
        return False
    took = f"{time.perf_counter() - started:.0f} s"
    said = f"*{datetime.now(UTC):%Y-%m-%d}, {machine()}; {versions()}; {took}.*"
    text = with_result(RESULTS.read_text(), block, f"{said}\n\n{shown(done.stdout)}")
    RESULTS.write_text(text)
    return True


if __name__ == "__main__":
    main()
