"""`opd-trl env`: what a bug report needs."""

import argparse
import contextlib
import io
from pathlib import Path

import opd_trl


def main(argv: list[str]) -> int:
    """Print TRL's own report (versions, platform, GPUs, accelerate configuration) with our lines added."""
    argparse.ArgumentParser(prog="opd-trl env", description=__doc__, allow_abbrev=False).parse_args(argv)
    from trl.scripts.env import print_env

    report = io.StringIO()
    with contextlib.redirect_stdout(report):
        print_env()
    print(report.getvalue().rstrip())
    print(f"- opd_trl version: {opd_trl.__version__}")
    print(f"- opd_trl location: {Path(opd_trl.__file__).parent}\n")
    return 0
