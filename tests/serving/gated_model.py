"""A Qwen3 whose forward waits as long as a file exists: a teacher that is at work for as long as a test needs it."""

import json
import os
import time
from pathlib import Path

from transformers import Qwen3ForCausalLM


class GatedForCausalLM(Qwen3ForCausalLM):
    """Writes the shape of every forward to `$GATE_FOLDER/forwards`, then waits while `$GATE_FOLDER/hold` is there."""

    def __init__(self, config):
        super().__init__(config)
        self.model.register_forward_pre_hook(wait, with_kwargs=True)


def wait(module, args, kwargs):
    folder = Path(os.environ["GATE_FOLDER"])
    with (folder / "forwards").open("a") as file:
        file.write(json.dumps(list(kwargs["input_ids"].shape)) + "\n")
    while (folder / "hold").exists():
        time.sleep(0.01)
