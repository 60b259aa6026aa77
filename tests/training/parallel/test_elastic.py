"""A rank dies, torchrun starts all again, and the run goes on from its checkpoint."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest

VALIDATION = ("group_new_artist", "group_new_concepts", "count_new_concepts", "clip_new_moments")


class DiesOnce(L.Callback):
    """Kills rank 1 after a step, the first time."""

    def __init__(self, mark: str, after_step: int) -> None:
        self.mark, self.after_step = Path(mark), after_step

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        is_time = trainer.global_step == self.after_step and trainer.global_rank == 1
        if is_time and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.distributed
def test_torchrun_starts_the_ranks_again_and_the_run_goes_on(tmp_path):
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1",
        "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0",
        "-m", "vlmkit.train", "model=qwen3vl_tiny", "parallel=fsdp", f"run_dir={run}", "resume=true",
        "trainer.accelerator=cpu", "trainer.max_steps=5", "trainer.log_every_n_steps=1",
        "checkpointing.every_n_steps=2", "samples_per_source=0", "score_before=false",
        "data.num_workers=0", "planner.samples_per_step=8",
        *(f"data.validation.{name}.size=4" for name in VALIDATION),
        "+callbacks.dies._target_=tests.training.parallel.test_elastic.DiesOnce",
        f"+callbacks.dies.mark={tmp_path / 'died'}", "+callbacks.dies.after_step=3",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.getcwd(),
        # else the second attempt finds addresses of the first, and cannot connect (torch 2.15)
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    log = tmp_path / "log"
    with log.open("w") as file:  # not a pipe: what a killed rank leaves behind would hold it open
        code = subprocess.call(command, env=environment, stdout=file, stderr=file, timeout=200)
    text = log.read_text()
    assert code == 0, text[-4000:]
    assert (tmp_path / "died").exists()
    assert "going on from step 2" in text
    assert "rank 0: rank 1 (process" in text  # who was lost, from the one that was not
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [0, 1, 2, 3, 4]
