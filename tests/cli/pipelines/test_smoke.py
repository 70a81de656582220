"""The smoke pipeline for real: killed within its SFT, gone on with, and skipped when it is done."""

import json
import re
from pathlib import Path

from opd_trl.cli.pipelines.document import read_pipeline
from opd_trl.cli.pipelines.runner import Run

from .conftest import REPO, record
from .test_ends import wait_for


def test_the_smoke_pipeline_goes_on_after_a_kill_and_is_skipped_when_it_is_done(here, start):
    # The recipe itself, with an SFT long enough to be killed behind its first checkpoint.
    text = (REPO / "recipes" / "smoke" / "pipeline.yaml").read_text()
    Path("p.yaml").write_text(re.sub("output_dir: runs/.*", "output_dir: run", text, count=1))
    longer = [f"--set=sft.{setting}" for setting in ("max_steps=60", "save_steps=20", "per_device_train_batch_size=8")]
    short = [f"--set={stage}.max_steps=1" for stage in ("teacher", "opd")]
    first = start(*longer, *short)
    wait_for("run/sft/checkpoint-20/trainer_state.json", seconds=180)
    first.kill()
    first.wait()
    assert record()["sft"]["status"] == "running"

    second = start(*longer, *short)
    text = second.communicate(timeout=300)[0]
    assert second.returncode == 0, text
    assert "[2/" in text
    assert "sft: trl sft: runs, was ended" in text
    assert re.search("goes on from run/sft/checkpoint-[24]0", text)
    assert len(record()["sft"]["attempts"]) == 1  # a killed pipeline could not write the end of its own
    steps = json.loads(Path("run/sft/checkpoint-60/trainer_state.json").read_text())["global_step"]
    assert steps == 60
    assert Path("run/opd/model.safetensors").is_file()
    assert all(entry["status"] == "done" for entry in record().values())

    pipeline = read_pipeline("p.yaml", [setting.removeprefix("--set=") for setting in (*longer, *short)])
    planned = Run(pipeline, {}, record()).plan(first=0, last=len(pipeline.stages) - 1, forced=False)
    assert [reason for _, reason in planned] == [None] * len(record())
