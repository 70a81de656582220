"""The stage `memory` of gpu.py: what `opd-trl plan` says of a run beside what the run takes.

All completions have the longest length, which is what plan counts with. For the largest micro-batch a run is started
again and again, larger and smaller, on the whole card or with part of it allowed.
"""

import functools
from bisect import bisect
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from children import ChildError, Children, Send
from gpu_models import prepare
from lines import Deadline, Results
from steps import Task, measured, task_of
from trainers import QUESTIONS, Setup


DEFAULT, FULL, SELF = "OPDTrainer (default)", "OPDTrainer, full vocabulary", "OPSDTrainer (default)"
SIZES = {"full": {"prompts": 8, "steps": 2, "most": 256}, "small": {"prompts": 2, "steps": 2, "most": 2}}
# Trainers, and whether with gradient checkpointing.
PEAKS = {"full": ((DEFAULT, True), (FULL, True), (SELF, True), (DEFAULT, False)), "small": ((SELF, True),)}
UNCHECKPOINTED = ", no checkpointing"
LIMITED = {"full": (DEFAULT, SELF), "small": (DEFAULT,)}
# Of a smaller card, in GiB; on a CPU, where nothing runs out, in MiB of growth.
SMALL_CARD = {"full": 24, "small": 1}
# What a micro-batch may be called to count as the largest by plan.
BY_PLAN = {"plan_fits": ("fits",), "plan_tight": ("fits", "tight")}
CASE_SECONDS = 30
FINE = 8  # the largest micro-batch is known to one part in so many


def run(children: Children, results: Results, *, size: str, device: str, home: Path, deadline: Deadline) -> list[str]:
    """The stage: measure what has no line yet; return what failed, other than by running out of memory."""
    paths, failed = prepare(children, home / "models", size, device), []
    own, gib = SIZES[size], SMALL_CARD[size]
    # The context of CUDA, 1 GiB by plan's count, is outside of what torch allocates.
    limit, card = (1024 * (gib - 1), f"{gib} GiB") if device == "cuda" else (gib, f"{gib} MiB")

    def task(name: str, checkpointing: bool, limit_mib: int | None = None) -> Task:
        """A run of a few steps in micro-batches of their own."""
        found = task_of(name, "longest", size, device, paths, home)
        changed = {"prompts": own["prompts"], "steps": own["steps"], "gradient_checkpointing": checkpointing}
        return replace(found, setup=replace(found.setup, accumulation=1, **changed), limit_mib=limit_mib)

    for name, checkpointing in PEAKS[size]:
        case = f"peak: {name}{'' if checkpointing else UNCHECKPOINTED}"
        if case not in results.done() and deadline.leaves(CASE_SECONDS):
            failed += compare(children, results, case, task(name, checkpointing), deadline)
    searches = {f"{DEFAULT}{UNCHECKPOINTED}, the whole card": task(DEFAULT, False)}
    searches |= {f"{name}, {card}": task(name, True, limit) for name in LIMITED[size]}
    for name, one in searches.items():
        failed += search(children, results, f"largest: {name}", one, own["most"], deadline)
    return failed


def compare(children: Children, results: Results, case: str, one: Task, deadline: Deadline) -> list[str]:
    """One line: the peak of a run and what plan says of it."""
    try:
        content = measured(children, one, name="memory", seconds=deadline.limit)
        plan = children.call(plan_of, one, name="plan", seconds=120)
    except ChildError as error:
        return [f"{case}: {error}"]
    results.add(case=case, prompts=one.setup.prompts, **content, **plan)
    return []


def search(children: Children, results: Results, case: str, one: Task, most: int, deadline: Deadline) -> list[str]:
    """One line for each size that is tried, until the largest that fits is known."""
    known = [line for line in results.lines() if line.get("search") == case]
    trials = {line["prompts"]: "failed" not in line for line in known}
    planned = {name: known[0][name] for name in BY_PLAN} if known else {}
    try:
        while deadline.leaves(CASE_SECONDS):
            if not planned:
                planned = children.call(largest_by_plan, one, most, name="plan", seconds=180)
            prompts = next_trial(trials, planned["plan_tight"], most)
            if prompts is None:
                break
            tried = replace(one, setup=replace(one.setup, prompts=prompts))
            content = measured(children, tried, name=f"trial-{prompts}", seconds=deadline.limit)
            results.add(case=f"{case}: {prompts} prompts", prompts=prompts, search=case, **content, **planned)
            trials[prompts] = "failed" not in content
    except ChildError as error:
        return [f"{case}: {error}"]
    return []


def next_trial(trials: dict[int, bool], start: int, most: int) -> int | None:
    """The size to try next, None where the largest that fits is known to one part in `FINE`.

    Args:
        trials: size -> did it fit?
        start: the first one.
        most: no larger ones are tried.

    >>> next_trial({}, 16, 64), next_trial({16: True}, 16, 64), next_trial({16: False}, 16, 64)
    (16, 24, 10)
    >>> next_trial({16: True, 24: False}, 16, 64), next_trial({16: True, 17: False}, 16, 64)
    (20, None)
    """
    fitting = max((size for size, fits in trials.items() if fits), default=0)
    failing = min((size for size, fits in trials.items() if not fits), default=None)
    if not trials:
        return min(max(1, start), most)
    if failing is None:
        return None if fitting >= most else min(most, fitting + max(1, fitting // 2))
    if failing - fitting <= max(1, fitting // FINE):
        return None
    return (fitting + failing) // 2 if fitting else max(1, failing * 2 // 3)


def plan_of(send: Send, one: Task) -> None:
    """In a child: plan's figures, without the context of CUDA, which torch does not see."""
    send(planned(one, one.setup.prompts))


def largest_by_plan(send: Send, one: Task, most: int) -> None:
    """In a child: the largest micro-batch that plan calls `fits`, and the largest that it calls `tight`."""
    verdict = functools.cache(lambda prompts: planned(one, prompts)["verdict"])
    sizes = range(1, most + 1)
    send({name: bisect(sizes, False, key=lambda n, own=own: verdict(n) not in own) for name, own in BY_PLAN.items()})


def planned(one: Task, prompts: int) -> dict[str, Any]:
    """What the command says: MiB at the peak, its moment, the verdict."""
    from opd_trl.cli.plan import OWN_FLAGS
    from opd_trl.planning.inputs import plan
    from opd_trl.planning.sizing import CUDA_CONTEXT

    figures, _ = plan(plan_arguments(one, prompts), OWN_FLAGS)
    context = CUDA_CONTEXT if one.setup.device == "cuda" else 0
    total = sum(part["bytes"] for part in figures["components"] if part["at_peak"])
    return {"plan_mib": int(total - context) // 2**20, "plan_peak": figures["peak"], "verdict": figures["verdict"]}


def plan_arguments(one: Task, prompts: int) -> list[str]:
    """The command line of `opd-trl plan` for a run with so many prompts in a micro-batch."""
    setup, name = one.setup, one.trainer
    options: dict[str, Any] = {
        "model_name_or_path": setup.student,
        "dtype": setup.dtype,
        "output_dir": setup.output,
        "per_device_train_batch_size": prompts,
        "gradient_accumulation_steps": setup.accumulation,
        "gradient_checkpointing": setup.gradient_checkpointing,
        "max_completion_length": setup.completion_tokens,
        "prompt-length": prompt_tokens(setup),
        "loss_support": "full" if name == FULL else "student",
    }
    if setup.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        told = round(total, 2) if one.limit_mib is None else one.limit_mib // 1024 + 1
        options |= {"bf16": True, "gpus": 1, "gpu-memory": told}
    else:
        options |= {"bf16": False, "use_cpu": True}
    if name == SELF:
        # Of the trainers' lora(): rank, and all linear layers.
        options |= {"use_peft": True, "lora_r": 16, "lora_target_modules": "all-linear"}
        options |= {"max_teacher_prompt_length": teacher_prompt_tokens(setup), "privileged_context": "x"}
    else:
        options |= {"teacher_model_name_or_path": setup.teacher}
    return [text for flag, value in options.items() for text in (f"--{flag}", str(value))]


def prompt_tokens(setup: Setup) -> int:
    """Of the longest prompt: a token for each character, and three of the turns."""
    return len(setup.preface) + max(map(len, QUESTIONS)) + 3


def teacher_prompt_tokens(setup: Setup) -> int:
    """The same with two line ends and the context."""
    return prompt_tokens(setup) + 2 + len(setup.context)
