"""The commands that look at a recipe, on the device, under bfloat16 autocast with gradient checkpointing."""

import pytest
import torch


OPTIONS = {"bf16": True, "gradient_checkpointing": True, "loss_top_k": 60}


def device_of(place) -> str:
    """As `preflight` names it."""
    return torch.cuda.get_device_name() if place.on_cuda else "CPU"


@pytest.mark.parametrize("kind", ["a teacher", "the student with LoRA"])
def test_preflight_runs_every_section_on_the_device(place, note, run, recipe, kind):
    options = dict(OPTIONS)
    if kind == "the student with LoRA":
        contexts = [{"prompt": f"Question {i}?", "privileged_context": "abcdefgh"[i] * (9 + i)} for i in range(8)]
        options |= {"teacher_model_name_or_path": None, "use_peft": True, "lora_r": 2, "rows": contexts}
    _, _, figures = run("preflight", "--config", recipe(**options), "--prompts", "8", "--rule", "min_words:1")
    assert not [finding for finding in figures["findings"] if finding["verdict"] == "not run"]
    assert ("context" in figures) == (kind != "a teacher")
    cost = figures["cost"]
    assert cost["device"] == device_of(place)
    assert cost["peak_gib"] > 0
    note(
        f"preflight, {kind}: seconds of a step", **{name: cost[name] for name in ("generation", "teacher", "student")}
    )


@pytest.mark.parametrize("tail", ["renormalize", "bucket", "drop"])
def test_verify_loss_finds_that_a_right_loss_rests_at_the_teacher(place, note, run, recipe, tail):
    status, printed, figures = run("verify-loss", "--config", recipe(**OPTIONS, loss_tail=tail), "--prompts", "6")
    row = figures["rows"][0]
    note(
        f"verify-loss, {tail}",
        twin_loss=figures["twin_loss"],
        twin_gradient=figures["twin_gradient"],
        at_teacher=row["gradient_at_teacher"],
        cosine=row["block_cosine"],
    )
    assert status == 0, printed
    assert figures["twin_loss"] == pytest.approx(0.0, abs=1e-6)
    assert row["block_cosine"] > 0.9


def test_verify_loss_finds_the_bias_of_a_plain_topk(place, run, recipe):
    options = OPTIONS | {"loss_top_k": 5, "loss_tail": "drop", "stop_gradient": False}
    status, printed, _ = run("verify-loss", "--config", recipe(**options), "--prompts", "6")
    assert status == 1
    assert "stop: The configured loss is stationary away from the teacher" in printed
