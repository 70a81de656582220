"""Code of others is named before it runs, and refused with --no-code."""

import json
import os

import pytest
import yaml

from opd_trl.cli.main import main
from opd_trl.scripts.code_of_others import code_in


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in ("OPD_TRL_CODE_NAMED", "PYTHONSAFEPATH", "LD_PRELOAD", "RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.attack("recipes", "code hidden in the keys of a recipe: pickles, kernels, JSON files, variables", "named")
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"reward_funcs": ["os.system"]}, "reward_funcs: os.system"),
        ({"reward_funcs": "mine.length"}, "reward_funcs: mine.length (not found)"),
        ({"tools": ["os.system"]}, "tools: os.system"),
        ({"environment_factory": "mine.Game"}, "environment_factory: mine.Game (not found)"),
        ({"privileged_builder": "mine:build"}, "privileged_builder: mine:build (not found)"),
        ({"trust_remote_code": True, "teachers": {"a": "who/what"}}, "trust_remote_code: who/what"),
        ({"model_init_kwargs": {"trust_remote_code": True}}, "model_init_kwargs.trust_remote_code: True"),
        ({"teacher_model_init_kwargs": '{"trust_remote_code": true}'}, "teacher_model_init_kwargs.trust_remote_code"),
        ({"model_init_kwargs": {"weights_only": False}}, "model_init_kwargs.weights_only: False"),
        ({"attn_implementation": "who/kernel"}, "attn_implementation: who/kernel"),
        ({"generation_kwargs": {"custom_generate": "who/what"}}, "generation_kwargs.custom_generate"),
        ({"datasets": [{"path": "a", "trust_remote_code": True}]}, "datasets.0.trust_remote_code"),
        ({"deepspeed": "ds.json"}, "deepspeed.torch_autocast.lower_precision_safe_modules"),
        ({"accelerate_config": "acc.yaml"}, "accelerate_config.deepspeed_config.deepspeed_hostfile: hosts"),
        ({"env": {"LD_PRELOAD": "x.so"}}, "env: LD_PRELOAD"),
        ({"env": {"PYTHONPATH": "."}}, "env: PYTHONPATH"),
        ({"env": {"HF_ENDPOINT": "http://else.where"}}, "env: HF_ENDPOINT"),
    ],
)
def test_code_is_found_wherever_it_hides(values, said, here):
    (here / "ds.json").write_text(json.dumps({"torch_autocast": {"lower_precision_safe_modules": ["a.b"]}}))
    (here / "acc.yaml").write_text("deepspeed_config: {deepspeed_hostfile: hosts}\n")
    assert code_in(values)[0].startswith(said)


def test_what_is_ours_and_what_is_off_is_no_code():
    ours = {"reward_funcs": ["math_accuracy", "opd_trl.data.procedural_score", "accuracy_reward"]}
    off = {"trust_remote_code": False, "privileged_builder": "hint", "attn_implementation": "sdpa"}
    env = {"env": {"CUDA_VISIBLE_DEVICES": "0", "NCCL_DEBUG": "INFO"}, "privileged_template": "{{ context }}"}
    assert code_in(ours | off | env) == []


CODE = {"privileged_builder": "strange:build", "env": {"LD_PRELOAD": "x.so"}, "privileged_context": "c"}


@pytest.mark.attack(
    "recipes", "a recipe with import paths and LD_PRELOAD, and --no-code", "nothing is imported or trained"
)
def test_no_code_refuses_before_anything_is_imported(refused, parse, capsys, here):
    (here / "strange.py").write_text("raise SystemExit('imported')")
    (here / "r.yaml").write_text(yaml.safe_dump(CODE))
    error = refused("--config", "r.yaml", "--no-code")
    assert "--no-code refuses code of others: privileged_builder: strange:build" in error
    assert "env: LD_PRELOAD" in error
    parse("--config", "r.yaml")
    said = capsys.readouterr().err
    assert said.startswith("opd-trl opsd: runs code of others: privileged_builder: strange:build (")
    assert said.count("\n") == 1
    parse("--config", "r.yaml")
    assert capsys.readouterr().err == ""  # once in a job


def test_no_code_keeps_the_working_folder_out_of_what_is_started(parse):
    parse("--no-code")
    assert os.environ["PYTHONSAFEPATH"] == "1"


@pytest.mark.attack(
    "recipes", "a pipeline whose stages run scripts or hold import paths, and --no-code", "refused, each named"
)
def test_the_stages_of_a_pipeline_are_named_too(here, capsys):
    (here / "work.py").write_text("")
    stages = {
        "own": {"run": "python work.py", "outputs": "x"},
        "opsd": {"run": "opd-trl opsd", "args": {"reward_funcs": ["strange.length"], "dataset_name": "who/what"}},
    }
    (here / "p.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    assert main(["pipeline", "--config", "p.yaml", "--dry-run", "--no-code"]) == 2
    error = capsys.readouterr().err
    assert "stage own: python work.py; stage opsd: reward_funcs: strange.length" in error
    assert main(["recipes", "show", "p.yaml"]) == 0
    assert "runs code of others: stage opsd" in capsys.readouterr().err.replace("stage own: python work.py; ", "")
