"""One GPU, ten minutes: is it right, how fast is it, what does it hold, beside transformers. No network.

python -m benchmarks.gpu --out results/gpu
python -m benchmarks.gpu --case train_4b
python -m benchmarks.gpu --toy            # all of it on the CPU at tiny sizes: does it run?

Each case runs in a process of its own, so that one which fails or runs out of memory is reported and the rest
goes on. Of `--minutes`, cases get their share by the time they need; where it does not suffice for all, the
last of the list are left out, and within a case rounds, compilation and transformers go first. gpu.md and
gpu.json are written after each case. The last line of the output is one JSON object.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
# asking whether there is a GPU must not start CUDA in the process that others are forked from
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import argparse
import importlib.metadata
import json
import multiprocessing
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "triton", "transformers", "flash-attn", "liger-kernel", "peft", "lightning", "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)  # fmt: skip
PRELOADED = ["benchmarks.on_gpu.preload"]
SHORTEST = 15.0
"""Seconds of a case that is begun at all."""


def main() -> None:
    """Run the cases and write the report."""
    assert __doc__
    from benchmarks.on_gpu.cases import CASES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="for all cases together")
    parser.add_argument(
        "--case", choices=CASES, action="append", help="only this one; may be repeated"
    )
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument(
        "--device", default=None, help="cuda where there is one, else cpu with --toy"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-benchmark"))
    parser.add_argument("--threads", type=int, default=None, help="of a case, on the host")
    options = parser.parse_args()
    device = options.device or ("cpu" if options.toy else "cuda")
    if device == "cpu" and not options.toy:
        parser.error("full sizes are for a GPU: say --toy, or --device cuda")
    threads = options.threads or (1 if options.toy else min(os.cpu_count() or 1, 16))
    end = time.monotonic() + 60 * options.minutes
    names = [name for name in CASES if not options.case or name in options.case]
    about = facts(device, options.toy)
    results: dict[str, dict[str, Any]] = {name: {"status": "left out: no time"} for name in names}
    runner = Runner(device, options.toy, threads)
    kept = affordable(names, {name: CASES[name].seconds for name in names}, end - time.monotonic())
    for i, name in enumerate(kept):
        left = end - time.monotonic()
        if left < SHORTEST:
            break
        needed = sum(CASES[later].seconds for later in kept[i:])
        given = max(left * CASES[name].seconds / needed, min(left, SHORTEST))
        print(f"{name}: {CASES[name].what} (at most {given:.0f} s)", flush=True)
        results[name] = runner.run(name, given)
        print(f"  {results[name]['status']}, {results[name]['seconds']:.1f} s", flush=True)
        save(options.out, about, results)
    save(options.out, about, results)
    print(f"written: {options.out / 'gpu.md'}, {options.out / 'gpu.json'}", flush=True)
    print(json.dumps({name: summary(found) for name, found in results.items()}))
    if any(found["status"] not in ("done", "left out: no time") for found in results.values()):
        raise SystemExit(1)


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """What the last line says of a case; gpu.json has the rest."""
    kept = ("status", "goals", "speed", "memory", "errors")
    return {key: found[key] for key in kept if found.get(key)}


def affordable(names: list[str], seconds: dict[str, float], budget: float) -> list[str]:
    """The first cases whose times fit, one at least."""
    kept: list[str] = []
    for name in names:
        if kept and sum(seconds[n] for n in kept) + seconds[name] > budget:
            break
        kept.append(name)
    return kept


class Runner:
    """Starts a process for each case, from one that has imported everything.

    Where CUDA does not start in such a process, the next ones import for themselves.
    """

    def __init__(self, device: str, toy: bool, threads: int) -> None:
        self.device, self.toy, self.threads = device, toy, threads
        self.context: Any = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)

    def run(self, name: str, seconds: float) -> dict[str, Any]:
        """Findings of a case, also of one that died or took too long."""
        from benchmarks.on_gpu.worker import NO_CUDA

        found = self._once(name, seconds)
        if found["status"] == NO_CUDA and self.context.get_start_method() == "forkserver":
            self.context = multiprocessing.get_context("spawn")
            found = self._once(name, seconds)
        return found

    def _once(self, name: str, seconds: float) -> dict[str, Any]:
        from benchmarks.on_gpu.worker import work

        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "found.json"
            arguments = (name, self.device, self.toy, str(file), seconds, self.threads)
            process = self.context.Process(target=work, args=arguments)
            process.start()
            process.join(seconds + SHORTEST)
            too_long = process.is_alive()
            if too_long:
                process.kill()
                process.join()
            found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        if too_long:
            found["status"] = (
                f"stopped after {seconds + SHORTEST:.0f} s; the table holds what was done"
            )
        elif found.get("status") in (None, "running"):
            found["status"] = f"died with exit code {process.exitcode}"
        found["seconds"] = time.monotonic() - began
        return found


def facts(device: str, toy: bool) -> dict[str, Any]:
    """Where and with what this runs."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
        "device": device if device == "cpu" else _nvidia_smi(),
        "host": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "toy": toy,
    }


def _nvidia_smi() -> str:
    fields = "name,driver_version,memory.total,power.limit,clocks.max.sm"
    found = _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    return found.splitlines()[0] if found else "unknown: nvidia-smi did not answer"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def save(folder: Path, about: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
    """Write the page and the numbers."""
    from benchmarks.on_gpu.report import page

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.md").write_text(page(about, results))
    (folder / "gpu.json").write_text(
        json.dumps({"about": about, "cases": results}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
