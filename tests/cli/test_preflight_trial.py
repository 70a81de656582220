"""`opd-trl preflight --trial`: real jobs of the run as it is configured, a table and a word."""

import argparse

import pytest

from opd_trl.cli.preflight import tried
from opd_trl.cli.trials.variants import LOSSES, cost, variants
from tests.distributed.launch import free_port, needs_deepspeed
from tests.preflight.conftest import recipe, run  # noqa: F401 - fixtures


ROWS = [{"prompt": [{"role": "user", "content": f"{'a' * (i % 4 + 1)} plus {i}?"}]} for i in range(32)]


def given(**flags):
    defaults = {"trial": 2, "no_trial": False, "trial_prompts": 4, "rates": "", "losses": ""}
    return argparse.Namespace(**defaults | flags)


@needs_deepspeed
def test_a_trial_runs_under_the_engine_of_the_recipe_and_says_one_word(run, recipe, tmp_path):  # noqa: F811
    config = recipe(rows=ROWS, max_steps=3, learning_rate=1e-2, per_device_train_batch_size=2, use_cpu=True)
    flags = ["--trial", "2", "--trial-prompts", "4", "--prompts", "4", "--losses", "sample"]
    flags += ["--use_deepspeed", "--zero_stage", "2", "--num_processes", "2", "--main_process_port", str(free_port())]
    status, printed, figures = run("preflight", "--config", config, *flags)
    (trial,) = figures["trials"]
    assert trial["verdict"] in ("works", "harms", "unclear")
    assert f"{trial['verdict']}: " in printed
    assert "the divergence alone decides, since no judge scores answers" in printed
    assert "[trial 1/1] loss_support: student, loss_tail: sample: 2 optimizer steps" in printed
    for look in ("before", "halfway", "after"):
        assert len(trial[look]["reverse_kl"]) == len(trial[look]["teacher_text"]) == 4  # of both processes
    assert trial["learning_rates"] == pytest.approx([1e-2, 2e-2 / 3])
    assert trial["changes"]["reverse_kl"]["change"][0] == pytest.approx(
        sum(trial["after"]["reverse_kl"]) / 4 - sum(trial["before"]["reverse_kl"]) / 4
    )
    assert status == int(figures["verdict"] == "stop")
    assert not (tmp_path / "out").exists()


def test_what_a_trial_refuses_is_a_line(run, recipe):  # noqa: F811
    config = recipe(rows=ROWS, max_steps=3, use_cpu=True)
    status, printed, _ = run("preflight", "--config", config, "--trial", "9", "--trial-prompts", "4", "--prompts", "4")
    assert status == 2
    assert "error: the trial: a trial of 9 steps, and the run has 3. Give --trial 3 or less." in printed


@needs_deepspeed
def test_memory_that_one_process_lacks_is_said_and_ends_the_others(run, recipe, tmp_path):  # noqa: F811
    (tmp_path / "greedy_reward.py").write_text(
        "import os, torch\n\ndef reward(completions, **columns):\n"
        "    if os.environ.get('RANK') == '1':\n        torch.empty(2**60)\n    return [0.0] * len(completions)\n"
    )
    more = {"max_steps": 3, "per_device_train_batch_size": 2, "use_cpu": True, "num_generations": 2}
    config = recipe(rows=ROWS, reward_funcs=["greedy_reward.reward"], **more)
    flags = ["--trial", "2", "--trial-prompts", "4", "--prompts", "4"]
    flags += ["--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port())]
    status, printed, _ = run("preflight", "--config", config, *flags)
    assert status == 2
    assert "error: the trial: out of memory in a step of the run. `opd-trl plan` says what takes it" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"rates": "1e-6,x"}, "--rates takes numbers above 0.* got 'x'"),
        ({"rates": "nan"}, "--rates takes numbers above 0"),
        ({"losses": "ful"}, "--losses takes full, .*; got 'ful'"),
        ({"rates": "1e-6", "trial": None, "trial_prompts": None, "no_trial": True}, "--rates asks for a trial, and"),
        ({"no_trial": True}, "--trial asks for a trial, and --no-trial leaves it out. Drop one."),
        ({"trial": 0}, "--trial must be >= 1, got 0. --no-trial leaves it out."),
        ({"trial_prompts": 1}, "--trial-prompts must be >= 2"),
    ],
    ids=str,
)
def test_flags_that_cannot_be_tried_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        variants(given(**flags))


def test_every_rate_is_tried_with_every_form_of_the_loss():
    found = variants(given(rates="1e-6, 2e-6", losses="full,drop"))
    assert found == [{"learning_rate": rate} | LOSSES[loss] for loss in ("full", "drop") for rate in ("1e-6", "2e-6")]
    assert variants(given()) == [{}]
    nothing = {"trial": None, "trial_prompts": None}
    assert variants(given(**nothing)) == [{}]
    assert variants(given(no_trial=True, **nothing)) == []


def test_a_trial_that_nobody_asked_for_is_left_out_with_the_reason_where_it_cannot_be():
    def refuses(options):
        raise ValueError("the trial: this one is a stream.")

    nobody = given(trial=None, trial_prompts=None)
    assert tried(refuses, [{}], nobody, {"verdict": "ok"}) == {
        "trials": [],
        "no_trial": "the trial: this one is a stream. --no-trial leaves it out.",
    }
    assert "the checks stop this run" in tried(refuses, [{}], nobody, {"verdict": "stop"})["no_trial"]
    for verdict in ("ok", "stop"):
        with pytest.raises(ValueError, match="this one is a stream"):
            tried(refuses, [{}], given(), {"verdict": verdict})


def test_the_price_of_a_trial_is_said_before_it_begins_and_how_often_a_server_is_asked():
    step = {"completions": 8, "total": 4.0, "generation": 2.0, "teacher": 1.0, "student": 1.0, "is_served": False}
    assert cost(given(trial=10, trial_prompts=16), {"cost": step}) == (
        "10 optimizer steps, and answers to 16 held-out prompts, three times; about 64 s in one process, and the time "
        "to start"
    )
    assert "the teacher's server scores 128 sequences" in cost(
        given(trial=10, trial_prompts=16), {"cost": step | {"is_served": True}}
    )
    assert cost(given(trial=None, trial_prompts=None), {}).startswith("20 optimizer steps, and answers to 64 held-out")
