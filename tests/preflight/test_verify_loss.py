"""`opd-trl verify-loss` as a user calls it."""

import pytest

from opd_trl.cli.main import main
from opd_trl.cli.verify_loss import HELP


def verify(run, recipe, *argv, **options):
    return run("verify-loss", "--config", recipe(**options), "--prompts", "6", *argv)


def test_a_right_loss_passes_and_nothing_but_the_json_is_written(run, recipe, tmp_path):
    status, printed, figures = verify(run, recipe, loss_top_k=60)
    assert status == 0
    assert "The student as its own teacher, through the code that trains: loss 0.0e+00" in printed
    assert printed.endswith("points where the exact one does (cosine " + f"{figures['rows'][0]['block_cosine']:.3f}).")
    assert figures["verdict"] == "ok"
    assert figures["configured"].startswith("divergence: reverse_kl, loss_support: student, loss_top_k: 60")
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "train.jsonl", "figures.json"}


def test_plain_topk_ends_with_status_1_and_the_remedy(run, recipe):
    status, printed, figures = verify(run, recipe, loss_tail="drop", stop_gradient=False)
    assert status == 1
    assert "stop: The configured loss is stationary away from the teacher" in printed
    assert "Set loss_tail: renormalize or bucket, or stop_gradient: true" in printed
    assert figures["rows"][0]["bias"] > 0.01


def test_a_teacher_that_is_the_student_has_loss_0_and_gradient_0(run, recipe, student_path):
    status, printed, figures = verify(run, recipe, teacher_model_name_or_path=student_path)
    assert status == 0
    assert "ok: Student and teacher give the same distributions: loss 0 and gradient 0" in printed
    assert (figures["rows"][0]["loss"], figures["rows"][0]["gradient_at_teacher"]) == (0.0, 0.0)
    assert figures["exact_loss"] == pytest.approx(0.0, abs=1e-6)


def test_self_distillation_is_checked_on_the_adapter(run, recipe):
    options = {"teacher_model_name_or_path": None, "privileged_context": "Say b.", "use_peft": True, "lora_r": 2}
    status, _, figures = verify(run, recipe, "--top-ks", "3", "7", **options)
    assert status == 0
    assert figures["exact_loss"] > 0
    assert {row["top_k"] for row in figures["rows"]} == {None, 3, 5, 7}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--config", "nowhere"], "nowhere"),
        (["--prompts", "0"], "--prompts must be >= 1, got 0."),
        (["--json", "nowhere/figures.json"], "there is no folder nowhere. Make it first."),
        (["--top-ks", "0"], "--top-ks must be >= 1, got 0."),
        (["--dataset_name", "gone.jsonl"], "gone.jsonl"),
        (["--loss_topk", "3"], "--loss_top_k"),
        (["--loss_top_k", "1000"], "loss_top_k must be at most the vocabulary of 103"),
    ],
)
def test_bad_input_is_one_line_and_status_2(recipe, capsys, argv, says):
    recipe_name = recipe()
    config = [] if "--config" in argv else ["--config", recipe_name]
    try:
        status = main(["verify-loss", *config, *argv])
    except SystemExit as exit_:
        status = exit_.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.splitlines()[-1].startswith("opd-trl verify-loss: error: ")
    assert says in error


def test_help_teaches_without_loading_torch(capsys):
    assert main(["verify-loss", "--help"]) == 0
    assert capsys.readouterr().out == HELP
