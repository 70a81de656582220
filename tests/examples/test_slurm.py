"""The Slurm scripts run to their end with stand-ins for Slurm, and what they would start is accepted by its parser."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from trl import TrlParser
from trl.scripts.vllm_serve import ScriptArguments

from opd_trl.scripts import opd
from opd_trl.scripts.launching import launch_arguments
from opd_trl.scripts.recipe_files import accelerate_names, find_recipe


ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "slurm"
FILES = [FOLDER / name for name in ("single_node.slurm", "multi_node.slurm", "README.md")]
SCRIPTS = FILES[:2]

SRUN = """#!/bin/bash
tasks=1
while [[ $1 == -* ]]; do
    [[ $1 == --ntasks=* ]] && tasks=${1#*=}
    shift
done
for ((i = 0; i < tasks; i++)); do SLURM_PROCID=$i "$@"; done
"""
RECORD = '#!/bin/bash\nprintf "%q " "${0##*/}" "$@" >> "$COMMANDS"; echo >> "$COMMANDS"\n'
WAIT_FOR_SERVER = "while [[ ${VLLM_SERVER:-0} == 1 && ! -s $COMMANDS ]]; do sleep 0.1; done\n"
STAND_INS = {
    "srun": SRUN,
    "scontrol": '#!/bin/bash\nprintf "%s\\n" ${3//,/ }\n',
    "opd-trl": RECORD.replace("printf", f"{WAIT_FOR_SERVER}printf", 1),
    "accelerate": RECORD,
    "trl": RECORD,
}


@pytest.fixture(autouse=True)
def at_the_top_of_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def submit(tmp_path):
    """Run a script as Slurm would; return the commands that it starts, each a list of words."""
    commands = tmp_path / "commands"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").write_text("")
    for name, text in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(name: str, nodes: int, **environment: str) -> list[list[str]]:
        slurm = {
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "12345",
            "SLURM_JOB_NODELIST": ",".join(f"node-{i}" for i in range(nodes)),
            "SLURM_GPUS_ON_NODE": "8",
            "SLURM_CPUS_PER_TASK": "64",
        }
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        own = {"PATH": path, "VENV": str(tmp_path), "COMMANDS": str(commands)}
        subprocess.run(
            ["bash", str(FOLDER / name)], env={**os.environ, **slurm, **own, **environment}, check=True, cwd=tmp_path
        )
        return [shlex.split(line) for line in commands.read_text().splitlines()]

    return run


def parse_launch(command: list[str]):
    """What accelerate, and behind it our strict parser, make of a recorded command."""
    assert command[:2] == ["accelerate", "launch"]
    launch = launch_arguments(command[2:])
    assert launch.module
    assert launch.training_script == "opd_trl.scripts.opd"
    _, training, *_ = opd.make_parser().parse_args_and_config([*launch.training_script_args, "--use_cpu"])
    return launch, training


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_accepts_the_script(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_every_recipe_and_accelerate_configuration_that_is_named_exists(file):
    text = file.read_text()
    recipes, configs = re.findall(r"--config (\S+)", text), re.findall(r"--config_file (\S+)", text)
    assert recipes
    assert configs
    assert all(find_recipe(name).is_file() for name in recipes)
    assert all((ROOT / name).is_file() for name in configs)
    assert set(re.findall(r"--accelerate_config (\w+)", text)) <= set(accelerate_names())


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_it_is_said_that_nothing_was_run(file):
    assert "ot run here" in file.read_text()


def test_one_node_sizes_the_run_and_starts_a_process_on_each_gpu(submit):
    plan, command = submit("single_node.slurm", nodes=1)
    assert plan[:2] == ["opd-trl", "plan"]
    launch, training = parse_launch(command)
    assert (launch.num_processes, launch.main_process_port) == (8, 22345)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * 8 == 64


def test_several_nodes_get_one_launcher_each_that_meet_at_the_first(submit):
    _, *commands = submit("multi_node.slurm", nodes=2)
    parsed = [parse_launch(command) for command in commands]
    assert [launch.machine_rank for launch, _ in parsed] == [0, 1]
    for launch, training in parsed:
        assert (launch.num_machines, launch.num_processes) == (2, 16)
        assert (launch.main_process_ip, launch.main_process_port) == ("node-0", 22345)
        assert training.per_device_train_batch_size * training.gradient_accumulation_steps * 16 == 64
        assert training.vllm_mode == "colocate"


def test_the_last_of_several_nodes_may_serve_vllm_to_the_others(submit):
    commands = submit("multi_node.slurm", nodes=3, VLLM_SERVER="1")
    (server,) = (command for command in commands if command[0] == "trl")
    assert server[1] == "vllm-serve"
    (served,) = TrlParser(ScriptArguments).parse_args_and_config(server[2:])
    launches = [parse_launch(command) for command in commands if command[0] == "accelerate"]
    assert len(launches) == 2
    for launch, training in launches:
        assert launch.num_processes == 16
        assert (training.vllm_mode, training.vllm_server_host) == ("server", "node-2")
        assert training.vllm_server_port == served.port
        assert training.vllm_max_model_length == served.max_model_len


def test_a_job_that_starts_again_goes_on_from_its_last_checkpoint(submit, tmp_path):
    for step in (200, 1000):
        (tmp_path / "runs" / "opd_qwen3_1.7b_from_8b" / f"checkpoint-{step}").mkdir(parents=True)
    for script in ("single_node.slurm", "multi_node.slurm"):
        command = submit(script, nodes=2, SLURM_SUBMIT_DIR=str(tmp_path))[-1]
        at = command.index("--resume_from_checkpoint")
        assert command[at + 1] == "runs/opd_qwen3_1.7b_from_8b/checkpoint-1000"


def test_the_command_without_slurm_names_the_nodes_of_the_hostfile():
    (block,) = re.findall(r"```bash\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    launch, training = parse_launch(shlex.split(block.replace("\\\n", " ")))
    hosts = [line.split() for line in (FOLDER / "hostfile").read_text().splitlines() if not line.startswith("#")]
    assert (ROOT / launch.deepspeed_hostfile) == FOLDER / "hostfile"
    assert launch.main_process_ip == hosts[0][0]
    assert launch.num_machines == len(hosts)
    assert launch.num_processes == sum(int(slots.removeprefix("slots=")) for _, slots in hosts)
    assert training.gradient_accumulation_steps * 2 * 16 == 64
