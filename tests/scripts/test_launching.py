import os
import subprocess
from pathlib import Path

import pytest
from accelerate.commands import launch as accelerate_launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from opd_trl.cli.main import main
from opd_trl.scripts.launching import launch, launch_arity, resolve_accelerate_config
from opd_trl.scripts.recipe_files import accelerate_names, recipes_dir
from tests.distributed.launch import free_port


def config_file(flags: list[str]) -> Path:
    return Path(launch_command_parser().parse_args([*flags, "script.py"]).config_file)


@pytest.fixture
def launched(monkeypatch):
    """The arguments that `accelerate launch` would get, in place of a launch."""
    seen = []
    monkeypatch.setattr(accelerate_launch, "launch_command", seen.append)
    return seen


@pytest.mark.parametrize("name", accelerate_names())
def test_accelerate_loads_each_of_our_configurations(name):
    config = load_config_from_file(str(recipes_dir() / "accelerate_configs" / f"{name}.yaml"))
    assert config.num_machines == 1
    assert config.use_cpu == (name == "cpu")
    assert config.num_processes == (1 if name in ("cpu", "single_gpu") else 8)
    assert config.deepspeed_config.get("zero_stage") == {"zero1": 1, "zero2": 2, "zero3": 3}.get(name)
    assert config.fsdp_config.get("fsdp_version") == (2 if name == "fsdp2" else None)


def test_the_configurations_of_the_design_are_there():
    assert accelerate_names() == ["cpu", "fsdp2", "multi_gpu", "single_gpu", "zero1", "zero2", "zero3"]


def test_a_name_means_our_configuration_first_then_that_of_trl():
    assert config_file(resolve_accelerate_config(["--accelerate_config", "zero3"])).parent == (
        recipes_dir() / "accelerate_configs"
    )
    assert config_file(resolve_accelerate_config(["--accelerate_config=fsdp1"])).parent.name == "accelerate_configs"


def test_a_file_wins_over_a_name(here):
    (here / "zero3").write_text("x")
    assert resolve_accelerate_config(["--accelerate-config", "zero3"]) == ["--config_file", "zero3"]


def test_the_last_configuration_wins_and_other_flags_stay(here):
    (here / "mine.yaml").write_text("x")
    flags = ["--accelerate_config", "zero2", "--num_processes", "2", "--accelerate_config=mine.yaml", "--quiet"]
    assert resolve_accelerate_config(flags) == ["--config_file", "mine.yaml", "--num_processes", "2", "--quiet"]
    assert resolve_accelerate_config(["--quiet"]) == ["--quiet"]


@pytest.mark.parametrize("flags", [["--accelerate_config", "zero9"], ["--accelerate_config"]])
def test_an_unknown_configuration_lists_the_nearest(flags, here):
    with pytest.raises(ValueError, match=r"neither a file .* nor a configuration .* zero1, zero2, zero3"):
        resolve_accelerate_config(flags)


def test_our_own_flags_of_the_launcher_are_not_the_users():
    assert not {"module", "no_python", "training_script", "help"} & launch_arity().keys()
    assert launch_arity()["multi_gpu"] == 0
    assert launch_arity()["num_processes"] == 1


def test_the_command_splits_launch_flags_from_training_arguments(launched, write_rows):
    write_rows("rows.jsonl")
    training = ["--model_name_or_path", "m", "--dataset_name", "rows.jsonl", "--use_cpu", "--loss_top_k", "2"]
    launching = ["--accelerate_config", "zero3", "--num_processes", "2"]
    assert main(["opsd", *training[:4], *launching, *training[4:]]) == 0
    (args,) = launched
    assert (args.module, args.training_script) == (True, "opd_trl.scripts.opsd")
    assert args.training_script_args == training
    assert args.num_processes == 2
    assert Path(args.config_file).name == "zero3.yaml"


def test_a_flag_wins_over_the_recipe_for_accelerate_too(launched, write_rows, here):
    write_rows("rows.jsonl")
    (here / "r.yaml").write_text(
        "model_name_or_path: m\ndataset_name: rows.jsonl\nuse_cpu: true\naccelerate_config: zero2\nnum_processes: 4\n"
    )
    assert main(["opsd", "--config", "r.yaml", "--accelerate_config", "cpu", "--num_processes", "1"]) == 0
    (args,) = launched
    assert args.num_processes == 1
    assert Path(args.config_file).name == "cpu.yaml"
    assert args.training_script_args == ["--config", "r.yaml"]


MODEL, ROWS, TEACHER = (
    ["--model_name_or_path", "m"],
    ["--dataset_name", "rows.jsonl"],
    ["--teacher_model_name_or_path"],
)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (ROWS, "no student is given"),
        (MODEL, "no data set is given"),
        ([*MODEL, "--dataset_name", "none.jsonl"], "'none.jsonl' does not exist"),
        ([*MODEL, *ROWS], "no teacher is given"),
        ([*MODEL, *ROWS, "--privileged_context_file", "no.md"], "privileged_context_file='no.md' does not exist"),
        ([*MODEL, *ROWS, "--privileged_builder", "hintt"], "privileged_builder='hintt'"),
        ([*MODEL, *ROWS, *TEACHER, "t", "--mixed_precision", "fp9"], "accelerate launch: argument --mixed_precision"),
        ([*MODEL, *ROWS, *TEACHER, "t", "--accelerate_config", "zero9"], "Nearest: zero1, zero2, zero3"),
        ([*MODEL, *ROWS, *TEACHER, "t", "--num_processes", "2"], "accelerate starts one process where it sees fewer"),
    ],
)
def test_faults_are_found_before_anything_is_launched(argv, message, launched, write_rows, here, capsys):
    write_rows("rows.jsonl")
    with pytest.raises(SystemExit) as exit_:
        main(["opd", "--use_cpu", *argv])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert launched == []
    assert [path.name for path in here.iterdir()] == ["rows.jsonl"]


def test_deepspeed_that_is_not_installed_is_one_line(write_rows, monkeypatch, capsys):
    write_rows("rows.jsonl")
    monkeypatch.setattr(accelerate_launch, "is_deepspeed_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["opsd", "--use_cpu", *MODEL, *ROWS, "--accelerate_config", "zero2"])
    assert "opd-trl opsd: error: DeepSpeed is not installed" in capsys.readouterr().err


def test_the_exit_status_is_that_of_the_training_process(monkeypatch):
    def fail(args):
        raise subprocess.CalledProcessError(returncode=3, cmd=["python"])

    monkeypatch.setattr(accelerate_launch, "launch_command", fail)
    assert launch("opd_trl.scripts.opd", [], []) == 3


def test_of_several_processes_the_exit_status_is_that_of_the_first_that_failed(monkeypatch, tmp_path):
    (tmp_path / "fails.py").write_text(
        "import os, signal\nif os.environ['RANK'] == '1':\n    os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    flags = ["--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port())]
    assert launch("fails", flags, []) == 128 + 9


THREADS = """
import os, sys
print(os.environ["OMP_NUM_THREADS"], os.environ.get("OMP_WAIT_POLICY"), file=open(sys.argv[1], "a"))
"""


@pytest.fixture
def threads(here, monkeypatch):
    """What the processes of a launch see of OMP_NUM_THREADS and OMP_WAIT_POLICY, where the user has set `given`."""
    (here / "threads.py").write_text(THREADS)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", str(here))

    def run(*flags: str, **given: str) -> list[str]:
        for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        (here / "seen.txt").unlink(missing_ok=True)
        assert launch("threads", list(flags), ["seen.txt"]) == 0
        return (here / "seen.txt").read_text().splitlines()

    return run


def test_a_lone_process_uses_all_cores_and_what_the_user_has_set_stays(threads):
    cores = len(os.sched_getaffinity(0))
    assert threads("--num_processes", "1") == [f"{cores} PASSIVE"]
    assert threads("--num_processes", "1", OMP_NUM_THREADS="3") == ["3 PASSIVE"]
    assert threads("--num_processes", "1", OMP_WAIT_POLICY="ACTIVE") == [f"{cores} ACTIVE"]


def test_several_processes_share_the_cores_as_accelerate_sees_fit(threads):
    port = ["--main_process_port", str(free_port())]
    assert threads("--multi_gpu", "--num_processes", "2", *port) == ["1 None"] * 2
