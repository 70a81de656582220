import signal
import subprocess
import sys
import types

import pytest

import opd_trl
from opd_trl.cli.main import COMMANDS, main


def run_in_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_the_overview_names_every_command(argv, capsys):
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in COMMANDS)


def test_an_unknown_command_names_the_nearest_one(capsys):
    assert main(["opds"]) == 2
    assert "unknown command 'opds': did you mean op" in capsys.readouterr().err
    assert main(["x"]) == 2
    assert f"the commands are {', '.join(COMMANDS)}" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == opd_trl.__version__


@pytest.mark.parametrize("argv", [["--steps", "3"], ["--help"]])
def test_demo_gets_the_rest_of_the_command_line_help_included(argv, monkeypatch):
    seen = []
    demo = types.ModuleType("opd_trl.cli.demo")
    demo.main = lambda rest: seen.append(rest)
    monkeypatch.setitem(sys.modules, "opd_trl.cli.demo", demo)
    assert main(["demo", *argv]) == 0
    assert seen == [argv]


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["opd", "--help"],
        ["opsd", "-h"],
        ["opsd", "--config", "x", "--help"],
        ["plan", "--help"],
        ["plan", "--config", "x", "-h"],
        ["serve-teacher"],
        ["serve-teacher", "--model", "x", "--help"],
        ["recipes", "list"],
    ],
)
def test_help_and_the_list_of_recipes_import_neither_torch_nor_trl(argv):
    code = f"import sys; from opd_trl.cli.main import main; main({argv}); print(sorted(sys.modules))"
    modules = run_in_new_process(code).splitlines()[-1]
    assert "'opd_trl.cli.main'" in modules
    assert "'torch'" not in modules
    assert "'trl'" not in modules


def test_env_prints_what_a_bug_report_needs(capsys):
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    for name in ("opd_trl", "TRL", "Transformers", "PyTorch", "PEFT", "Datasets", "Accelerate", "DeepSpeed", "vLLM"):
        assert f"- {name} version: " in printed
    for name in ("Python version", "Platform", "accelerator(s)"):
        assert f"- {name}: " in printed


@pytest.mark.parametrize("argv", [["methods"], ["recipes", "list"], ["opsd", "--help"]], ids=" ".join)
def test_a_reader_that_has_read_enough_gets_no_traceback(argv):
    command = [sys.executable, "-m", "opd_trl.cli.main", *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # as `| head -0`, before the first line
        assert process.stderr.read() == ""
        assert process.wait(60) in (1, 128 + signal.SIGPIPE)  # 1 where rich was writing
