"""The table of the SmolLM2 pipeline: what a run has measured, kept by model and seed, with what had been foretold."""

import json

import pytest
import words
from matplotlib.image import imread


def write_run(folder, seed, *, forecast=None):
    """A finished run with two models, as the pipeline and the evaluation leave it."""
    stages = {"words": {"arguments": {"seed": seed}, "seconds": 1.0}}
    for name, right in (("sft", 0.25), ("opd", 0.75)):
        stages[name] = {"seconds": 120.0, "start": "2026-11-30T12:00:00+00:00"}
        stages[f"eval_{name}"] = {"status": "done", "seconds": 30.0}
        output = folder / f"eval_{name}"
        output.mkdir(parents=True)
        difference = {"difference": 0.5, "low": 0.4, "high": 0.6}
        against = [] if name == "sft" else [{"folder": "x/eval_sft", "avg@2": difference}]
        result = {
            "figures": {"avg@2": {"value": right, "low": right - 0.1, "high": right + 0.1}},
            "comparisons": against,
            "generation": {"mean_tokens": 12.5},
            "conditions": {"machine": "2 CPU cores"},
        }
        (output / "result.json").write_text(json.dumps(result))
        texts = ["1+1=2: \\boxed{2}", "We start with 1. Add 1, that is 2.", "\\boxed{2}", "\\boxed{3}"]
        (output / "samples.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "pipeline.json").write_text(json.dumps({"stages": stages}))
    if forecast:
        (folder / "forecasts").mkdir()
        (folder / "forecasts" / "opd.json").write_text(json.dumps(forecast))
    return folder


def test_figures_of_all_seeds_stand_in_one_row_of_each_model(tmp_path):
    runs = [write_run(tmp_path / "a", 1), write_run(tmp_path / "b", 0, forecast={"verdict": "ok"})]
    text = words.table(line for run in runs for line in words.read_run(run))
    head, _, sft, opd = text.splitlines()[:4]
    assert head.split(" | ")[1:3] == ["seed 0", "seed 1"]
    assert sft.split(" | ")[1:3] == ["25 % [15, 35]"] * 2
    assert opd.startswith("| **OPD from the GRPO teacher** | 75 % [65, 85] |")
    assert opd.endswith("| +50 [+50, +50] | equations in 25%, sentences in 25% | ok | 2 |")
    assert "Minutes of a whole run: 5 (seed 0), 5 (seed 1)." in text


def test_a_gain_is_a_mean_of_seeds_and_of_one_seed_has_no_interval():
    lines = [{"against_sft": {"difference": share}} for share in (0.2, 0.3, 0.4)]
    assert words.gain(lines) == "+30 [+5, +55]"  # 4.303 standard errors of 5.77
    assert words.gain(lines[:1]) == "+20"
    assert words.gain([{"against_sft": None}]) == ""


def test_a_model_that_works_nothing_out_gives_bare_answers():
    assert words.manner([{"equations": 0.004, "sentences": 0.0}]) == "bare answers"


def test_the_word_of_a_trial_wins_over_the_verdict_of_the_checks():
    assert words.foretold({"verdict": "fix", "trials": [{"options": {}, "verdict": "harms"}]}) == "harms"
    assert words.foretold({"verdict": "stop", "trials": [], "no_trial": "the checks stop this run."}) == "stop"
    assert words.foretold({"verdict": "stop"}) == "stop"


def test_lines_are_kept_and_replaced_by_model_and_seed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(words, "KEPT", tmp_path / "words.jsonl")
    run = write_run(tmp_path / "a", 0)
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- words: begin, written by benchmarks/words.py -->\n<!-- words: end -->\nbelow\n")
    assert words.main([str(run)]) == 0
    assert words.main([str(run), "--write", str(page), "--plot", str(tmp_path / "pictures/words.png")]) == 0
    assert len((tmp_path / "words.jsonl").read_text().splitlines()) == 2
    assert page.read_text().startswith("above\n")
    assert page.read_text().endswith("below\n")
    assert page.read_text().count("| SFT student |") == 1
    height, width, _ = imread(tmp_path / "pictures/words.png").shape
    assert (width, height) == (1140, 510)


@pytest.mark.parametrize(("content", "message"), [(None, "has no pipeline.json"), ({}, "no model is evaluated yet")])
def test_a_folder_without_results_is_one_line(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.setattr(words, "KEPT", tmp_path / "words.jsonl")
    if content is not None:
        stages = {"words": {"arguments": {"seed": 0}, "seconds": 1.0}}
        (tmp_path / "pipeline.json").write_text(json.dumps({"stages": stages}))
    assert words.main([str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "words.jsonl").exists()
