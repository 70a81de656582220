"""Mathematics on a real model, for the stage `real` of gpu.py: accuracy before, the recipe, accuracy after.

The recipe is math/opsd_qwen3_1.7b_solution with a LoRA adapter, short answers and few steps. The data is a file of
GSM8K; a fifth of it, chosen by the hash of the prompts, is held out.
"""

import json
import time
from pathlib import Path
from typing import Any

from lines import Deadline, Results
from measure import opd_trl


RECIPE = "math/opsd_qwen3_1.7b_solution"
CASES = ("mathematics before", "mathematics training", "mathematics after")
SIZES = {
    "full": {"steps": 20, "prompts": 16, "tokens": 384, "questions": 128},
    "small": {"steps": 2, "prompts": 2, "tokens": 8, "questions": 2},
}
CASE_SECONDS = {"full": 60, "small": 5}


def run(
    results: Results, *, size: str, device: str, home: Path, deadline: Deadline, model: Path | None, data: Path | None
) -> list[str]:
    """The part: run what has no line yet; return what failed."""
    if model is None or data is None:
        print("mathematics: left out; it needs --math-model FOLDER and --math-data FILE (GSM8K).")
        return []
    home = home / "mathematics"
    try:
        if not (home / "data.train.jsonl").is_file():
            opd_trl(*prepare_arguments(data, home), log=home / "data.txt", seconds=deadline.limit)
        for case in CASES:
            if case not in results.done():
                if not deadline.leaves(CASE_SECONDS[size]):
                    break
                results.add(case=case, model=model.name, **measure(case, size, device, home, model, deadline))
    except RuntimeError as error:
        return [f"mathematics: {error}"]
    return []


def measure(case: str, size: str, device: str, home: Path, model: Path, deadline: Deadline) -> dict[str, Any]:
    """One of the three cases."""
    start, name = time.perf_counter(), case.rpartition(" ")[2]
    output = home / ("adapter" if name == "training" else name)
    if name == "training":
        arguments = train_arguments(size, device, home, model)
    else:
        arguments = eval_arguments(size, home, model, output, adapter=home / "adapter" if name == "after" else None)
    opd_trl(*arguments, log=home / f"{name}.txt", seconds=deadline.limit)
    if name == "training":
        log = (output / "run_log" / "log.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [entry for entry in map(json.loads, log) if "loss" in entry]
        found = {"steps": len(steps), "first": steps[0], "last": steps[-1]}
    else:
        result = json.loads((output / "result.json").read_text())
        found = {"figures": result["figures"], "generation": result["generation"]}
    return found | {"wall_seconds": round(time.perf_counter() - start, 1)}


def prepare_arguments(data: Path, home: Path) -> list[str]:
    """From a file of GSM8K to rows of ours in two parts."""
    output = ["--output", str(home / "data.jsonl"), "--parts", "train=0.8,test=0.2"]
    return ["data", "prepare", "gsm8k", "--path", str(data), *output]


def train_arguments(size: str, device: str, home: Path, model: Path) -> list[str]:
    """The recipe on one card, in this process alone."""
    setting = SIZES[size]
    options = {
        "model_name_or_path": model,
        "dataset_name": home / "data.train.jsonl",
        "output_dir": home / "adapter",
        "dtype": "bfloat16",
        "use_peft": True,
        "lora_target_modules": "all-linear",
        "learning_rate": 1e-4,
        "use_vllm": False,
        "vllm_max_model_length": "null",
        "max_steps": setting["steps"],
        "per_device_train_batch_size": setting["prompts"],
        "gradient_accumulation_steps": 1,
        "max_completion_length": setting["tokens"],
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "bf16": device == "cuda",
    }
    return ["opsd", "--config", RECIPE, *(x for flag, value in options.items() for x in (f"--{flag}", str(value)))]


def eval_arguments(size: str, home: Path, model: Path, output: Path, *, adapter: Path | None) -> list[str]:
    """One answer to each of some held-out questions."""
    setting = SIZES[size]
    arguments = ["eval", "--suite", "math", "--protocol", "math_short", "--model", str(model)]
    arguments += ["--data", str(home / "data.test.jsonl"), "--limit", str(setting["questions"])]
    arguments += ["--max-new-tokens", str(setting["tokens"]), "--output", str(output)]
    return arguments + (["--adapter", str(adapter)] if adapter else [])
