"""The stage `memory` of gpu.py: what `opd-trl plan` says of a run beside what the run takes.

All completions have the longest length, which is what plan counts with. For the largest micro-batch a run is started
again and again, larger and smaller, on the whole card or with part of it allowed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gpu_children import ChildError, Send
from gpu_models import prepare
from gpu_steps import Task, measured, task_of
from trainers import QUESTIONS, Setup


DEFAULT, FULL, SELF = "OPDTrainer (default)", "OPDTrainer, full vocabulary", "OPSDTrainer (default)"
SIZES = {"full": {"prompts": 8, "steps": 2, "most": 256}, "small": {"prompts": 2, "steps": 2, "most": 2}}
# Trainers, and whether with gradient checkpointing.
PEAKS = {"full": ((DEFAULT, True), (FULL, True), (SELF, True), (DEFAULT, False)), "small": ((SELF, True),)}
LIMITED = {"full": (DEFAULT, SELF), "small": (DEFAULT,)}
# Of a smaller card, in GiB; on a CPU, where nothing runs out, in MiB of growth.
SMALL_CARD = {"full": 24, "small": 1}
# What a micro-batch may be called to count as the largest by plan.
BY_PLAN = {"plan_fits": ("fits",), "plan_tight": ("fits", "tight")}
CASE_SECONDS = 30
FINE = 8  # the largest micro-batch is known to one part in so many


@dataclass(frozen=True)
class Run:
    """A run that is planned and made.

    Attributes:
        task: of `gpu_steps`.
        gpu_gib: memory that plan is told; None: that of the card.
    """

    task: Task
    gpu_gib: int | None = None


def run(children, results, *, size: str, device: str, home: Path, deadline) -> list[str]:
    """The stage: measure what has no line yet; return what failed, other than by running out of memory."""
    paths, failed = prepare(children, home / "models", size, device), []
    for case, one in peaks(size, device, paths, home):
        if case not in results.done() and deadline.leaves(CASE_SECONDS):
            failed += compare(children, results, case, one, deadline)
    for case, one in searches(size, device, paths, home):
        failed += search(children, results, case, one, SIZES[size]["most"], deadline)
    return failed


def peaks(size: str, device: str, paths: dict[str, str], home: Path) -> Iterator[tuple[str, Run]]:
    """Runs whose peak is compared."""
    for name, checkpointing in PEAKS[size]:
        yield f"peak: {titled(name, checkpointing)}", Run(task(name, checkpointing, size, device, paths, home))


def searches(size: str, device: str, paths: dict[str, str], home: Path) -> Iterator[tuple[str, Run]]:
    """Runs whose largest micro-batch is sought: without checkpointing on the whole card, with it on a smaller one."""
    whole = Run(task(DEFAULT, False, size, device, paths, home))
    yield f"largest: {titled(DEFAULT, False)}, the whole card", whole
    gib = SMALL_CARD[size]
    for name in LIMITED[size]:
        limited = task(name, True, size, device, paths, home)
        # The context of CUDA, 1 GiB by plan's count, is outside of what torch allocates.
        limit = 1024 * (gib - 1) if device == "cuda" else gib
        case = f"largest: {titled(name, True)}, {gib} {'GiB' if device == 'cuda' else 'MiB'}"
        yield case, Run(replace(limited, limit_mib=limit), gib)


def titled(name: str, checkpointing: bool) -> str:
    return f"{name}{'' if checkpointing else ', no checkpointing'}"


def task(name: str, checkpointing: bool, size: str, device: str, paths: dict[str, str], home: Path) -> Task:
    """A run of a few steps in micro-batches of their own."""
    full = task_of(name, "longest", size, device, paths, home)
    setting = SIZES[size]
    setup = replace(
        full.setup,
        prompts=setting["prompts"],
        accumulation=1,
        steps=setting["steps"],
        gradient_checkpointing=checkpointing,
    )
    return replace(full, setup=setup)


def compare(children, results, case: str, one: Run, deadline) -> list[str]:
    """One line: the peak of a run and what plan says of it."""
    try:
        content = measured(children, one.task, name="memory", seconds=deadline.limit)
        (planned,) = children.run(plan_of, one, [one.task.setup.prompts], name="plan", seconds=120)
    except ChildError as error:
        return [f"{case}: {error}"]
    results.add(case, prompts=one.task.setup.prompts, **content, **planned[0])
    return []


def search(children, results, case: str, one: Run, most: int, deadline) -> list[str]:
    """One line for each size that is tried, until the largest that fits is known."""
    known = [line for line in results.lines() if line.get("search") == case]
    trials = {line["prompts"]: "failed" not in line for line in known}
    planned = {name: known[0][name] for name in BY_PLAN} if known else {}
    try:
        while deadline.leaves(CASE_SECONDS):
            if not planned:
                (planned,) = children.run(largest_by_plan, one, most, name="plan", seconds=180)
            prompts = next_trial(trials, planned["plan_tight"], most)
            if prompts is None:
                break
            tried = replace(one.task, setup=replace(one.task.setup, prompts=prompts))
            content = measured(children, tried, name=f"trial-{prompts}", seconds=deadline.limit)
            results.add(f"{case}: {prompts} prompts", prompts=prompts, search=case, **content, **planned)
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


def plan_of(send: Send, one: Run, sizes: list[int]) -> None:
    """In a child: plan's figures for some micro-batches, without the context of CUDA, which torch does not see."""
    send([planned(one, size) for size in sizes])


def largest_by_plan(send: Send, one: Run, most: int) -> None:
    """In a child: the largest micro-batch that plan calls `fits`, and the largest that it calls `tight`."""
    found = {}
    for name, verdicts in BY_PLAN.items():
        fitting, failing = 0, most + 1
        while failing - fitting > 1:
            size = (fitting + failing) // 2
            if planned(one, size)["verdict"] in verdicts:
                fitting = size
            else:
                failing = size
        found[name] = fitting
    send(found)


def planned(one: Run, prompts: int) -> dict[str, Any]:
    """What the command says: MiB at the peak, its moment, the verdict."""
    from opd_trl.cli.plan import OWN_FLAGS
    from opd_trl.planning.inputs import plan
    from opd_trl.planning.sizing import CUDA_CONTEXT

    figures, _ = plan(plan_arguments(one, prompts), OWN_FLAGS)
    context = CUDA_CONTEXT if one.task.setup.device == "cuda" else 0
    total = sum(part["bytes"] for part in figures["components"] if part["at_peak"])
    return {"plan_mib": int(total - context) // 2**20, "plan_peak": figures["peak"], "verdict": figures["verdict"]}


def plan_arguments(one: Run, prompts: int) -> list[str]:
    """The command line of `opd-trl plan` for a run with so many prompts in a micro-batch."""
    setup, name = one.task.setup, one.task.trainer
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
        options |= {"bf16": True, "gpus": 1, "gpu-memory": one.gpu_gib or round(total, 2)}
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
