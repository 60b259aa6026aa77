"""Where a run takes place: code, packages, machine, variables. Nothing that looks like a secret."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import vlmkit

VARIABLES = re.compile(
    r"(OMP|MKL|KMP|GOMP|CUDA|CUBLAS|CUDNN|NVIDIA|NCCL|GLOO|UCX|FI|TORCH|PYTORCH|TORCHINDUCTOR|TRITON"
    r"|HIP|ROCR|NUMEXPR|OPENBLAS|SLURM|XLA|HF_HUB_OFFLINE)(_|$)"
)
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|KEY|CREDENTIAL|AUTH|COOKIE", re.I)
SECRET_KEY = re.compile(r"(^|[._-])(token|secret|passw(or)?d|api_?key|credentials?)$", re.I)
SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abprs]-|AKIA|ASIA|eyJ)[\w.-]{12,}"
    r"|://[^/\s:@]*:[^/\s@]+@"  # a password in an address
    r"|(?<![\w/+-])[0-9a-f]{40,}(?![\w/+-])"  # keys of 160 bits and more
)
DROPPED = "(dropped: looks like a secret)"
LARGEST_PATCH = 2**20


def environment() -> dict[str, Any]:
    """Command, interpreter, packages, torch's build, processors, variables."""
    return {
        "command": [without_secrets(word) for word in sys.argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
        "torch": torch_build(),
        "machine": machine(),
        "variables": variables(os.environ),
    }


def packages(distribution: str = "vlmkit") -> dict[str, str | None]:
    """Versions of a distribution and of everything that it names; None: not installed."""
    try:
        required = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return {distribution: None}
    found = (re.match(r"[\w.-]+", line) for line in required)
    names = sorted({match[0] for match in found if match})
    return {name: _version(name) for name in (distribution, *names)}


def torch_build() -> dict[str, Any]:
    """What torch was built with, and the libraries that it found."""
    facts: dict[str, Any] = {
        "version": torch.__version__,
        "git": torch.version.git_version,
        "debug": torch.version.debug,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "float32_matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if torch.cuda.is_available():
        facts["cudnn"] = torch.backends.cudnn.version()
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        facts["driver"] = _output(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
    return facts


def machine() -> dict[str, Any]:
    """Processors and threads."""
    gpus = range(torch.cuda.device_count())
    return {
        "gpus": [torch.cuda.get_device_name(i) for i in gpus],
        "cpu": _cpu_model(),
        "processors": os.cpu_count(),
        "usable_processors": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
    }


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that change what runs or how fast."""
    return {
        name: DROPPED if SECRET_NAME.search(name) else without_secrets(value)
        for name, value in sorted(environ.items())
        if VARIABLES.match(name)
    }


def without_secrets(text: str) -> str:
    """The text, or what stands for it where it looks like a secret."""
    key, sign, _ = text.partition("=")
    if not SECRET_VALUE.search(text) and not (sign and SECRET_KEY.search(key)):
        return text
    return f"{key}={DROPPED}" if sign and not SECRET_VALUE.search(key) else DROPPED


def git_state(folder: Path | None = None) -> tuple[dict[str, Any], bytes]:
    """Commit and changes of the working tree that the package runs from.

    Args:
        folder: within the tree; None takes the package's.

    Returns:
        facts, and the changes as a patch (empty where there are none, or where it is not to be had).
        Files that git does not know are named and hashed; they are not in the patch.
    """
    folder = folder or Path(vlmkit.__file__).parent
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    # an installed package may lie within a tree that is not its own
    tracked = _output("git", "-C", str(folder), "ls-files", "--", ".")
    if not commit or not tracked:
        return {"commit": None, "note": "no git, or not run from a git working tree"}, b""
    root = Path(_output("git", "-C", str(folder), "rev-parse", "--show-toplevel") or folder)
    patch = _bytes("git", "-C", str(root), "diff", "--binary", "HEAD") or b""
    names = (
        _bytes("git", "-C", str(root), "ls-files", "--others", "--exclude-standard", "-z") or b""
    )
    unknown = [os.fsdecode(name) for name in names.split(b"\0") if name]
    facts = {
        "commit": commit,
        "branch": _output("git", "-C", str(root), "rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": bool(patch or unknown),
        "diff_sha256": hashlib.sha256(patch).hexdigest() if patch else None,
        "diff_bytes": len(patch),
        "unknown_files": {name: _hash_of(root / name) for name in unknown[:200]},
    }
    return facts, patch if len(patch) < LARGEST_PATCH else b""


def _hash_of(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    except OSError:
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines: Iterable[str] = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = ()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _bytes(*command: str) -> bytes | None:
    """What a command prints, or None when it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _output(*command: str) -> str | None:
    out = _bytes(*command)
    return None if out is None else out.decode(errors="replace").strip()
