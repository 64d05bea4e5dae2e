"""Runs the commands that RESULTS.md quotes, and writes down what they print, on which machine, with what.

    scripts/bench                       all of them: most of a day on two cores
    scripts/bench network large         those of benchmarks/network.py and benchmarks/large.py

The commands are those in RESULTS.md, so that no figure there is without one. Both sides of every ratio are in
each command's own run.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

HERE = Path(__file__).parent
PACKAGES = ("torch", "faiss-gpu", "numpy", "openvino", "ray", "pymilvus", "milvus-lite")


def blocks(text: str) -> list[str]:
    """The commands of RESULTS.md, each with those before it in the same block, which prepare it."""
    found, lines = [], []
    for line in [*text.splitlines(), ""]:
        if re.match(r"    (python benchmarks/|loci |pip |\w+=)", line):
            lines.append(line.strip())
        elif lines:
            if any(each.startswith("python benchmarks/") for each in lines):
                found.append("\n".join(lines))
            lines = []
    return list(dict.fromkeys(found))


def scripts_of(block: str) -> set[str]:
    return set(re.findall(r"benchmarks/(\w+)\.py", block))


def machine() -> str:
    """What this runs on."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = names[0] if names else model
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, {gpu}; {platform.platform()}"


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
    known = blocks((HERE / "RESULTS.md").read_text())
    names = sorted(set().union(*map(scripts_of, known)))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--output", type=Path, default=HERE / "RUN.md")
    parser.add_argument("--list", action="store_true", help="say what would run")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no benchmark {', '.join(sorted(unknown))} in RESULTS.md: {', '.join(names)}")
    chosen = [block for block in known if not options.names or scripts_of(block) & set(options.names)]
    if options.list:
        print("\n\n".join(chosen))
        return
    with options.output.open("w") as file:
        print(f"# A run of {datetime.now(UTC):%Y-%m-%d}\n{machine()}; {versions()}.\n", file=file, flush=True)
        failed = [block for block in chosen if not run(block, file)]
    print(f"{options.output}: {len(chosen) - len(failed)} of {len(chosen)} done")
    sys.exit(bool(failed))


def run(block: str, file: object) -> bool:
    """Run a block's commands; whether they ended well."""
    print(block, file=sys.stderr)
    started = time.perf_counter()
    command = ["bash", "-euc", block]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    indented = "\n".join(f"    {line}" for line in block.splitlines())
    ended = "" if done.returncode == 0 else f", ended with {done.returncode}"
    print(
        f"{indented}\n\n{done.stdout}\n({time.perf_counter() - started:.0f} s{ended})\n",
        file=file,
        flush=True,
    )  # type: ignore[call-overload]
    return done.returncode == 0


if __name__ == "__main__":
    main()
