"""Runs a function of a test module on several processes, joined by gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_on_ranks(
    target: str, num_ranks: int, folder: Path, *, timeout: float = 240, **arguments: Any
) -> list[subprocess.CompletedProcess[str]]:
    """Call `module:function(folder, **arguments)` in each of `num_ranks` processes.

    Each finds RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as torchrun would set them.

    Returns:
        What each process has written, and how it ended.
    """
    module, function = target.split(":")
    code = (
        f"import json, sys; from {module} import {function} as run; from pathlib import Path\n"
        "run(Path(sys.argv[1]), **json.loads(sys.argv[2]))"
    )
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(num_ranks),
        "TORCHELASTIC_RUN_ID": "test",
    }
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), json.dumps(arguments)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    try:
        done = []
        for child in children:
            out, err = child.communicate(timeout=timeout)
            done.append(subprocess.CompletedProcess(child.args, child.returncode, out, err))
        return done
    finally:
        for child in children:
            child.kill()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
