"""What belongs to `accelerate launch`: its flags, its configuration files, and the launch itself."""

import argparse
import math
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..spelling import did_you_mean
from .processes import SIGNALS, Ended, all_cores, grace_seconds, owned, signals_end
from .recipe_files import ACCELERATE, accelerate_names, load_mapping, nearest, recipes_dir


CONFIG = "accelerate_config"
#: The exit status of a command that Ctrl-C has ended, and of one that SIGTERM has.
INTERRUPTED, TERMINATED = 130, 143
# Those of which each starts several processes.
SEVERAL = ("multi_gpu", "use_deepspeed", "use_fsdp", "use_megatron_lm", "tpu", "mpirun_hostfile")
# Flags of `accelerate launch` that are ours to set, or no business of a training command.
RESERVED = {"help", "module", "no_python", "training_script", "training_script_args"}


def accelerate_parser() -> argparse.ArgumentParser:
    """The parser of `accelerate launch`."""
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser()


def launch_arity() -> dict[str, int]:
    """Return how many values each flag of `accelerate launch` takes (0 or 1), `accelerate_config` included."""
    arity = {CONFIG: 1}
    for action in accelerate_parser()._actions:
        for option in action.option_strings:
            name = flag_name(option)
            if option.startswith("--") and name not in RESERVED:
                arity[name] = 0 if action.nargs == 0 else 1
    return arity


def flag_name(token: str) -> str:
    """Return the field that a flag sets: `--num-processes=2` -> `num_processes`."""
    return token.lstrip("-").partition("=")[0].replace("-", "_")


def as_flags(options: dict[str, Any], arity: dict[str, int]) -> list[str]:
    """Return the launch flags of a recipe's keys; a switch that is false is left out.

    >>> as_flags({"num_processes": 2, "multi_gpu": True, "quiet": False},
    ...          {"num_processes": 1, "multi_gpu": 0, "quiet": 0})
    ['--num_processes', '2', '--multi_gpu']
    """
    flags = []
    for name, value in options.items():
        if arity[name]:
            flags += [f"--{name}", str(value)]
        elif value:
            flags.append(f"--{name}")
    return flags


def unknown_tokens(tokens: list[str], known: dict[str, int]) -> list[str]:
    """Return the flags that are not `known` and the values that follow no flag; a known flag takes its value along.

    >>> unknown_tokens(["--num_processes", "2", "--betta", "0.5", "--quiet", "x"], {"num_processes": 1, "quiet": 0})
    ['--betta', 'x']
    """
    unknown, values_due = [], 0.0
    for token in tokens:
        if not token.startswith("--"):
            if values_due < 1:
                unknown.append(token)
            values_due -= 1
        elif flag_name(token) in known:
            values_due = 0 if "=" in token else known[flag_name(token)]
        else:
            unknown.append(token)
            values_due = float("inf")
    return unknown


def resolve_accelerate_config(flags: list[str]) -> list[str]:
    """Replace `--accelerate_config NAME_OR_FILE` by accelerate's `--config_file`; the last one given wins.

    A file of that path comes first, then our own configurations, then those of TRL.

    Raises:
        ValueError: there is none; the message lists the nearest names.
    """
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    rest, name = [], None
    tokens = iter(flags)
    for token in tokens:
        if not token.startswith("--") or flag_name(token) != CONFIG:
            rest.append(token)
            continue
        _, given, name = token.partition("=")
        name = name if given else next(tokens, "")
    if name is None:
        return rest
    ours = recipes_dir() / ACCELERATE / f"{name}.yaml"
    if not Path(name).is_file() and ours.is_file():
        name = str(ours)
    try:
        return resolve_accelerate_config_argument([f"--{CONFIG}", name, *rest])
    except ValueError:
        names = accelerate_names()
        raise ValueError(
            f"--accelerate_config {name!r} is neither a file (looked in {Path.cwd()}) nor a configuration of opd_trl "
            f"or TRL. Nearest: {', '.join(nearest(name, names) or names)}."
        ) from None


def without(argv: list[str], *, flags: list[str]) -> list[str]:
    """Return `argv` less `flags`, which occur in it in this order.

    >>> without(["--top_k", "2", "--num_processes", "2"], flags=["--num_processes", "2"])
    ['--top_k', '2']
    """
    due = list(flags)
    kept = []
    for token in argv:
        if due and token == due[0]:
            due.pop(0)
        else:
            kept.append(token)
    return kept


def launch(
    module: str,
    launch_flags: list[str],
    arguments: list[str],
    *,
    grace: float | None = None,
    hold: Sequence[int | None] = (),
) -> int:
    """Run a training module, as `python -m` does, under `accelerate launch`; return its exit status.

    A signal that ends this process is passed on to the training processes, which end before this returns. Where this
    process is killed they end as well. Raises ValueError where accelerate refuses a flag or a combination of them.

    Args:
        module: of the training.
        launch_flags: of `accelerate launch`.
        arguments: of the module.
        grace: seconds between the signal and SIGKILL.
        hold: descriptors of locks, which stay locked until all has ended.
    """
    from accelerate.commands.launch import launch_command, patch_environment
    from torch.distributed.elastic.multiprocessing import SignalException, errors

    args = launch_arguments(launch_flags, "--module", module, *arguments)
    grace = grace_seconds() if grace is None else grace
    variables = for_torch(grace) | (all_cores() if num_processes(launch_flags) == 1 else {})
    with owned(grace=grace, hold=hold) as owner, signals_end(), patch_environment(**variables):
        try:
            launch_command(args)
        except subprocess.CalledProcessError as error:  # the training process has printed its own error
            return status_of(error.returncode)
        except errors.ChildFailedError as error:  # of several processes; torch's launcher has named those that failed
            return status_of(error.get_first_failure()[1].exitcode)
        except (Ended, SignalException) as error:  # the second: of torch's launcher, which has asked its processes
            number = error.number if isinstance(error, Ended) else error.sigval
            owner.end(number)
            return 128 + number
    return 0


def status_of(code: int) -> int:
    """The exit status of a command whose process has ended with a code, below 0 for a signal.

    >>> status_of(2), status_of(-9)
    (2, 137)
    """
    return code if code >= 0 else 128 - code


def for_torch(grace: float) -> dict[str, str]:
    """What torch's launcher of several processes reads: how long they have to end, and which signals it passes on.

    One that is ignored (`nohup`) stays ignored.
    """
    passed = [number.name for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(grace)), "PET_SIGNALS_TO_HANDLE": ",".join(passed)}


def launch_arguments(launch_flags: list[str], *rest: str) -> argparse.Namespace:
    """What `accelerate launch` makes of its flags and of `rest`, script and arguments; ValueError: it refuses."""
    parser = accelerate_parser()
    parser.error = _refuse
    args = parser.parse_args([*resolve_accelerate_config(launch_flags), *rest])
    if args.config_file:
        load_mapping(Path(args.config_file))  # read strictly before accelerate reads it
    return args


def num_processes(launch_flags: list[str]) -> int:
    """How many processes `accelerate launch` would start: by its flags, its configuration, or the GPUs at hand.

    Raises ValueError where accelerate refuses a flag, or the file is not a configuration of it.
    """
    return launch_setting(launch_flags, "num_processes") or max(1, gpus())


def gpus() -> int:
    """How many GPUs this process sees."""
    from torch.cuda import device_count

    return device_count()


def check_processes(launch_flags: list[str]) -> None:
    """Raise ValueError where several processes are asked for, and accelerate would start one without a word."""
    args = launch_arguments(launch_flags, "script")
    config = load_mapping(Path(args.config_file)) if args.config_file else {}
    is_several = config.get("distributed_type", "NO") != "NO" or any(getattr(args, name) for name in SEVERAL)
    wanted = args.num_processes or config.get("num_processes") or 1
    if wanted > 1 and not is_several and gpus() < 2:
        raise ValueError(
            f"num_processes is {wanted}, and accelerate starts one process where it sees fewer than two GPUs and is "
            "given no engine for several. Add --multi_gpu (on CPUs too), --use_deepspeed or --accelerate_config "
            "zero2; or set --num_processes 1."
        )


def launch_setting(launch_flags: list[str], name: str) -> Any:
    """A number as `accelerate launch` would take it from its flags or its configuration; None where neither has it."""
    args = launch_arguments(launch_flags, "script")
    if getattr(args, name):
        return getattr(args, name)
    config = load_mapping(Path(args.config_file)) if args.config_file else {}
    return config.get(name)


def _refuse(message: str):
    """In place of argparse's own exit, which prints all of accelerate's flags first."""
    raise ValueError(f"accelerate launch: {message}")


def suggest(given: str, known: list[str]) -> str:
    """Name the nearest right key or flag.

    >>> suggest("betta", ["beta", "learning_rate"])
    'betta: did you mean beta?'
    """
    dashes = "--" if given.startswith("--") else ""
    none = "nothing is spelt like it; `--help` and `--help-all` list what there is."
    return f"{given}: " + did_you_mean(dashes + flag_name(given), [dashes + name for name in known], otherwise=none)
