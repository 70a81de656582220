"""`opd-trl opd` and `opd-trl opsd`: parse strictly here, so that errors come early, then `accelerate launch`."""

import importlib

from ..scripts.quiet import quiet_libraries


def main(name: str, argv: list[str]) -> int:
    """Run the training command `name` (`opd` or `opsd`) and return its exit status."""
    if not argv or ("--help-all" not in argv and {"-h", "--help"} & set(argv)):
        from .help import short_help

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
    from ..scripts.launching import launch

    try:
        script.check_arguments(*parsed)
        return launch(
            f"opd_trl.scripts.{name}", from_recipe + from_command_line, without(argv, flags=from_command_line)
        )
    except (ValueError, ImportError) as error:  # ImportError: DeepSpeed is asked for and not installed
        parser.error(str(error))


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
