"""`opd-trl opd` and `opd-trl opsd`: their short help; strict parsing, so that errors come early; the launch.

The help is made without importing TRL's configurations (4 s): our own fields, their defaults and help texts are read
from the source of `opd_trl/trainers/`; the comment above a run of fields is the title of its group.
"""

import ast
import contextlib
import importlib
import re
import shutil
import signal
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import opd_trl

from ..locks import writing
from ..scripts.quiet import quiet_libraries


ABOUT = {
    "opd": (
        "On-policy distillation: the student writes, a separate teacher scores every token that it wrote, the student "
        "moves towards the teacher. No reward function is needed. A privileged context (what only the teacher sees) "
        "is optional.",
        (
            ("a recipe by name, on 8 GPUs", "--config math/opd_qwen3_1.7b_from_8b --accelerate_config zero2"),
            (
                "no recipe: your prompts, two models",
                "--model_name_or_path Qwen/Qwen3-1.7B --teacher_model_name_or_path Qwen/Qwen3-8B "
                "--dataset_name prompts.jsonl --output_dir runs/opd",
            ),
            (
                "a teacher on other GPUs, served by `opd-trl serve-teacher` or vLLM",
                "--config my_recipe.yaml --teacher_server_url http://127.0.0.1:8001",
            ),
            (
                "a flag overrides the recipe; LoRA on one GPU",
                "--config my_recipe.yaml --use_peft --learning_rate 1e-4 --accelerate_config single_gpu",
            ),
        ),
    ),
    "opsd": (
        "On-policy self-distillation: the student writes without the privileged context; the same model, reading it, "
        "scores every token. So a system prompt, a constitution or worked examples move into the weights. It works "
        "where one rule is shared by all prompts; it is expected to fail where the context differs per prompt, as a "
        "solution does (arXiv 2605.11182).",
        (
            ("a recipe by name, on this machine", "--config system_prompt/demo"),
            (
                "no recipe: your prompts, one shared text, LoRA",
                "--model_name_or_path Qwen/Qwen3-1.7B --dataset_name prompts.jsonl "
                "--privileged_context_file constitution.md --use_peft --learning_rate 2e-4 --output_dir runs/opsd",
            ),
            (
                "a flag overrides the recipe; 8 GPUs",
                "--config system_prompt/opsd_qwen3_1.7b --loss_support union --divergence mixed "
                "--accelerate_config zero2 --num_processes 8",
            ),
        ),
    ),
}

START = (
    ("config", "Recipe: a name (`opd-trl recipes list`) or a file; given again, later ones win; flags win over all."),
    ("accelerate_config", "single_gpu, multi_gpu, zero1, zero2, zero3, fsdp2, cpu, or a file of `accelerate config`."),
    ("num_processes", "And every other flag of `accelerate launch`."),
    ("dataset_name", "Hub id, or a .jsonl, .json, .parquet or .csv file, or a folder with train.* and test.*."),
    ("model_name_or_path", "The student: hub id or path."),
    ("output_dir", "Where checkpoints and the trained model go."),
    ("no_code", "Refuse a recipe that runs code of others; without it such code is named before it runs."),
)

TRL_FLAGS = {
    "Most used flags of TRL and transformers": (
        ("max_completion_length", "Longest completion in tokens."),
        ("temperature", "Of sampling, and of the loss unless loss_temperature is set."),
        ("top_p", "Nucleus sampling."),
        ("chat_template_kwargs", 'JSON, e.g. {"enable_thinking": false}.'),
        ("use_vllm", "Generate with vLLM; vllm_mode: colocate or server."),
        ("per_device_train_batch_size", "Completions per device and micro-batch."),
        ("gradient_accumulation_steps", "Micro-batches per optimizer step."),
        ("max_steps", "Optimizer steps; or num_train_epochs."),
        ("lr_scheduler_type", "E.g. cosine; with warmup_steps (below 1: a share of the run)."),
        ("beta", "KL anchor to the initial model; 0 loads no reference model."),
        ("use_peft", "LoRA; with lora_r, lora_alpha, lora_target_modules."),
        ("load_in_4bit", "Quantized base model; LoRA only."),
        ("dtype", "Of the student's weights: float32, bfloat16, auto."),
        ("reward_funcs", "Rewards to mix in: names of TRL, or dotted import paths."),
        ("eval_strategy", "no, steps or epoch; needs a test split."),
        ("report_to", "none, tensorboard, wandb, trackio, ..."),
        ("use_cpu", "Train without a GPU."),
    ),
}

# In OPSD the teacher is the student itself.
NOT_IN_OPSD = (
    "teacher_model_name_or_path",
    "teacher_model_revision",
    "teacher_model_init_kwargs",
    "teacher_server_url",
    "teacher_server_timeout",
    "teacher_server_retries",
    "teacher_server_concurrency",
    "teachers",
    "teacher_server_models",
)


@dataclass(frozen=True)
class Flag:
    """A configuration field as the short help shows it."""

    name: str
    default: str
    help: str
    group: str


def read_fields(source: str, class_name: str) -> list[Flag]:
    """Return the fields of the dataclass `class_name` in the source of its module; those without a help left out."""
    lines = source.splitlines()
    body = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == class_name).body
    flags, group = [], ""
    for statement in body:
        group = _comment_above(lines, statement.lineno) or group
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Call):
            options = {keyword.arg: keyword.value for keyword in statement.value.keywords}
            if "metadata" in options:
                text = ast.literal_eval(options["metadata"])["help"]
                default = ast.unparse(options["default"]) if "default" in options else ""
                flags.append(Flag(ast.unparse(statement.target), default.strip("'\""), text, group))
    return flags


def _comment_above(lines: list[str], lineno: int) -> str:
    line = lines[lineno - 2].strip()
    return line.lstrip("# ") if line.startswith("#") else ""


def fields_of(class_name: str) -> list[Flag]:
    """Return the fields that a configuration of ours declares, and then those of its parents `...Fields`.

    `LossFields` is in `trainers/config/loss_fields.py`, `OPDConfig` in `opd_config.py`.
    """
    file = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=D)(?=C)", "_", class_name).lower() + ".py"
    source = (Path(opd_trl.__file__).parent / "trainers/config" / file).read_text(encoding="utf-8")
    node = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == class_name)
    parents = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id.endswith("Fields")]
    return [*read_fields(source, class_name), *(flag for parent in parents for flag in fields_of(parent))]


def our_flags(name: str) -> list[Flag]:
    """Return our own fields of the command `name`, in the order of the source."""
    flags = fields_of("OPDConfig")
    if name == "opsd":
        own = fields_of("OPSDConfig")
        at = next(i for i, flag in enumerate(flags) if flag.name.startswith("teacher"))
        own = [Flag(f.name, f.default, f.help, flags[at].group) for f in own]
        flags = [f for f in (*flags[:at], *own, *flags[at:]) if f.name not in NOT_IN_OPSD]
    return flags


def short_help(name: str, width: int | None = None) -> str:
    """Return the help of `opd-trl NAME`: what it does, three examples, our fields, the most used flags of TRL."""
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 119)
    about, examples = ABOUT[name]
    blocks = [
        f"usage: opd-trl {name} [--config RECIPE] [--FIELD VALUE ...] [flags of accelerate launch]",
        textwrap.fill(about, width),
        "Examples\n" + "\n".join(_example(name, title, flags, width) for title, flags in examples),
        _group("Start", START, width),
    ]
    groups: dict[str, list[tuple[str, str]]] = {}
    for flag in our_flags(name):
        default = "" if flag.default in ("", "None") else f" Default: {flag.default}."
        groups.setdefault(flag.group, []).append((flag.name, flag.help + default))
    blocks += [_group(title, flags, width) for title, flags in {**groups, **TRL_FLAGS}.items()]
    blocks.append(
        f"`opd-trl {name} --help-all` prints every flag of TRL and transformers (some seconds). "
        "`opd-trl recipes list` shows the recipes."
    )
    return "\n\n".join(blocks)


def _example(name: str, title: str, flags: str, width: int) -> str:
    glued = re.sub(r"(--\S+) (?!--)", "\\1\0", f"  opd-trl {name} {flags}")  # a flag and its value stay on one line
    lines = textwrap.wrap(glued, width - 2, subsequent_indent=" " * 6, break_on_hyphens=False, break_long_words=False)
    return f"  # {title}\n" + " \\\n".join(lines).replace("\0", " ")


def _group(title: str, flags, width: int) -> str:
    indent = " " * 34
    lines = [title]
    for name, text in flags:
        head = f"  --{name}".ljust(len(indent) - 1) + " "
        lines.append(textwrap.fill(text, width, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False))
    return "\n".join(lines)


def main(name: str, argv: list[str]) -> int:
    """Run the training command `name` (`opd` or `opsd`) and return its exit status."""
    if not argv or ("--help-all" not in argv and {"-h", "--help"} & set(argv)):
        print(short_help(name))
        return 0
    script = importlib.import_module(f"opd_trl.scripts.{name}")
    parser = script.make_parser(prog=f"opd-trl {name}")
    if "--help-all" in argv:
        parser.print_help()
        return 0
    with quiet_libraries():  # the training process gives them
        *parsed, from_recipe, from_command_line = parser.parse_args_and_config(
            argv, return_remaining_strings=True, separate_remaining_strings=True
        )
    from ..scripts import checkpoints, launching  # 0.1 s, which the short help must not wait for

    training_args, flags = parsed[1], from_recipe + from_command_line
    # A checkpoint that is asked for at SIGTERM needs the rest of a step and its saving.
    grace = launching.grace_seconds(300 if training_args.enable_jit_checkpoint else 20)
    try:
        launching.check_processes(flags)
        script.check_arguments(*parsed)
        with contextlib.ExitStack() as stack:
            lock = None
            if training_args.save_on_each_node or not launching.launch_setting(flags, "machine_rank"):
                lock = stack.enter_context(writing(training_args.output_dir, option="output_dir"))
            rest = launching.without(argv, flags=from_command_line)
            status = launching.launch(f"opd_trl.scripts.{name}", flags, rest, grace=grace, hold=[lock])
    except (ValueError, ImportError) as error:  # ImportError: DeepSpeed is asked for and not installed
        parser.error(str(error))
    if status - 128 in (signal.SIGHUP, signal.SIGKILL, signal.SIGTERM):  # of Ctrl-C the training itself speaks
        print(f"{parser.prog}: {checkpoints.how_to_go_on(training_args.output_dir)}", file=sys.stderr)
    return status
