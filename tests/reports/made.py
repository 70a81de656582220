"""Run logs as the trainer writes them, of runs that never were."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any


PROMPT = "system\nYou answer briefly.\nuser\nWhat is 34 + 58?\nassistant\n"
TEACHER_PROMPT = PROMPT.replace("briefly", "as a pirate: start with Arr, end with Aye!")
ANSWER = "Arr , thirty - four and fifty - eight make ninety - two , matey .\n So 34 + 58 = 92 . Aye !"
HOSTILE = ["<script>alert(1)</script>", "</script>", "{{7*7}}", "{% raw %}", "<!--", "<img src=x onerror=alert(2)>"]
VERSIONS = {"opd_trl": "0.1.0", "trl": "1.16.0", "transformers": "5.23.0", "torch": "2.13.0", "python": "3.11.2"}


def session(**changes: Any) -> dict[str, Any]:
    """A session of `run.json` that finished."""
    return {
        "started": "2026-11-22T10:00:00+00:00",
        "ended": "2026-11-22T12:20:00+00:00",
        "outcome": "finished",
        "first_step": 0,
        "max_steps": 100,
        "argv": ["opsd", "--config", "system_prompt/demo", "--privileged_context", "be kind"],
        "trainer": "OPSDTrainer",
        "method": "many_faces",
        "student": "Qwen/Qwen3-1.7B",
        "teachers": {"": "the student (base)"},
        "config": {"learning_rate": 2e-6, "loss_top_k": 5, "output_dir": "runs/opsd", "bf16": True, "seed": 42},
        "differs": {
            "loss_top_k": {"value": 5, "default": 20, "source": "method many_faces"},
            "output_dir": {"value": "runs/opsd", "default": None, "source": "OPSDConfig"},
        },
        "versions": VERSIONS,
        "processes": 1,
        "device": "NVIDIA H200",
    } | changes


def log_line(step: int, *, steps: int = 100, collapses: bool = False, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """What a step logs; `collapses`: loops from two thirds of the run on."""
    random.seed(seed * 1_000_003 + step)
    done = step / steps
    wild = max(0.0, (done - 0.66) * 3) if collapses else 0.0
    noise = lambda size=0.05: 1 + random.gauss(0, size)  # noqa: E731
    divergence = (0.15 + 0.7 * math.exp(-4 * done) + 0.9 * wild) * noise()
    generation, teacher, student = 3.4 * noise(), 1.9 * noise(), 2.4 * noise()
    return {
        "step": step,
        "session": 0,
        "seconds": step * 84.0,
        "epoch": done,
        "loss": divergence * noise(),
        "grad_norm": 0.6 * noise(0.3) * (1 + 6 * wild),
        "learning_rate": 2e-6 * min(1, done / 0.1) * (0.5 + 0.5 * math.cos(math.pi * done)),
        "completions/mean_length": (220 + 60 * done + 1500 * wild) * noise(),
        "completions/max_length": min(2048, (420 + 3000 * wild) * noise()),
        "completions/clipped_ratio": min(1, 0.02 * noise(0.5) + 0.9 * wild),
        "completions/repetition": min(1, 0.08 * noise() + 0.85 * wild),
        "entropy": (0.55 - 0.2 * done) * noise() * (1 - 0.5 * wild),
        "step_time": generation + teacher + student + 0.4,
        "time/generation": generation,
        "time/teacher": teacher,
        "time/student": student,
        "distillation/per_token_divergence": divergence,
        **{
            f"distillation/divergence_q{i + 1}": divergence * share * noise()
            for i, share in enumerate((1.9, 1.0, 0.65, 0.45 + wild))
        },
        "distillation/sampled_log_ratio": -divergence * noise(),
        "distillation/log_ratio_repeated": (-0.2 + 0.5 * wild) * noise(),
        "distillation/log_ratio_other": -divergence * 1.1 * noise(),
        "support/student_mass": min(1, 0.96 + 0.03 * done - 0.3 * wild + random.gauss(0, 0.003)),
        "support/teacher_mass": min(1, 0.90 + 0.08 * done - 0.3 * wild + random.gauss(0, 0.004)),
        "support/overlap": min(1, 0.62 + 0.2 * done - 0.5 * wild + random.gauss(0, 0.01)),
        "teacher/sampled_rank": (1.4 - 0.8 * done + 3 * wild) * noise(),
        "teacher/sampled_outside": min(1, 0.06 - 0.04 * done + 0.2 * wild),
        **({"eval_rule": min(1, done * 1.1) - 0.6 * wild} if step % 25 == 0 else {}),
    } | changes


def sample(step: int, *, steps: int = 100, tokens: list[str] | None = None, seed: int = 0, **changes: Any) -> dict:
    """A completion whose divergence is high at its start and falls over the run."""
    random.seed(seed * 999 + step)
    tokens = tokens or re.findall(r"^\S+| \S+\n?", ANSWER)
    level = 0.05 + math.exp(-3 * step / steps)
    divergence = [level * random.expovariate(1) * (4 if i < 3 else 0.6) for i in range(len(tokens))]
    return {
        "step": step,
        "session": 0,
        "prompt": PROMPT,
        "teacher_prompt": TEACHER_PROMPT,
        "tokens": tokens,
        "divergence": [*divergence[:-1], None],
        "log_ratio": [*(random.gauss(-value, value) for value in divergence[:-1]), None],
        "teacher": "",
    } | changes


def warning(step: int, **changes: Any) -> dict[str, Any]:
    """A rule that fired."""
    return {
        "step": step,
        "session": 0,
        "rule": "repetition",
        "figure": "completions/repetition",
        "value": 0.41,
        "threshold": 0.3,
        "window": 10,
        "message": "completions/repetition is 0.41 (threshold 0.3, 10 lines): the student loops (mechanism 2). "
        "Use loss_tail: renormalize with a larger loss_top_k, or lower the learning rate.",
    } | changes


def write_run(
    folder: Path,
    *,
    sessions: list[dict[str, Any]] | None = None,
    lines: list[dict[str, Any]] | None = None,
    samples: list[dict[str, Any]] | None = None,
    warnings: list[dict[str, Any]] | None = None,
    tail: str = "",
) -> Path:
    """Write a run log into `folder` and return `folder`; None leaves a file out, `tail` ends log.jsonl."""
    log = folder / "run_log"
    log.mkdir(parents=True)
    (log / "run.json").write_text(json.dumps({"format": 1, "sessions": sessions or [session()]}))
    for name, rows in (("log", lines), ("samples", samples), ("warnings", warnings)):
        if rows is not None:
            text = "".join(json.dumps(row) + "\n" for row in rows) + tail * (name == "log")
            (log / f"{name}.jsonl").write_text(text)
    return folder


def whole_run(folder: Path, *, steps: int = 100, collapses: bool = False, seed: int = 0, **options: Any) -> Path:
    """A run with everything: lines, samples every tenth step, and warnings where it collapses."""
    told = (
        warning(int(0.75 * steps)),
        warning(
            int(0.8 * steps),
            rule="support_mass",
            figure="support/student_mass",
            value=0.91,
            threshold=0.95,
            message="support/student_mass fell to 0.91 (threshold 0.95): mass leaks off the support.",
        ),
    )
    rows = {
        "lines": [log_line(step, steps=steps, collapses=collapses, seed=seed) for step in range(1, steps + 1)],
        "samples": [
            sample(step, steps=steps, seed=seed + i) for step in (1, *range(10, steps + 1, 10)) for i in range(2)
        ],
        "warnings": list(told) if collapses else None,
    }
    return write_run(folder, **rows | options)
