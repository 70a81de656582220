import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests import tiny


def read(folder) -> tuple[dict, list[dict]]:
    folder = Path(folder)
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return json.loads((folder / "result.json").read_text()), samples


def test_mathematics_from_file_to_card(evaluate, protocol, sums):
    status, out, _ = evaluate("--suite", "math", "--data", sums, "--protocol", protocol(), "--output", "o")
    result, samples = read("o")
    assert status == 0
    assert len(samples) == 6 * 2 * 2
    assert {"avg@4", "pass@2", "pass@4"} == result["figures"].keys()
    assert set(result["figures"]["avg@4"]) >= {"value", "low", "high", "low_over_seeds", "by_seed"}
    assert result["generation"]["samples"] == 24
    assert result["generation"]["truncated"] == sum(not s["finished"] for s in samples) / 24
    assert sum(result["counts"].values()) == 24
    assert result["identity"]["protocol"]["max_new_tokens"] == 6
    assert result["identity"]["model"]["fingerprint"]
    assert {"versions", "git_commit", "command", "machine", "date"} <= result["conditions"].keys()
    for text in ("avg@4", "truncated", "temperature 1", result["protocol_hash"], "6 problems"):
        assert text in out


def test_a_model_that_answers_right_scores_one(protocol, rows, tmp_path):
    """The verdict reaches the figures: an engine that boxes every second answer rightly."""
    from opd_trl.models.sampling import Completion
    from opd_trl.suites.math_suite import MathSuite
    from opd_trl.suites.problems import read_problems
    from opd_trl.suites.protocol import Protocol
    from opd_trl.suites.store import Store, Task, draw

    class Half:
        batch_size = 4

        def generate(self, prompts, sampling, seeds):
            return [Completion(r"\boxed{1}" if i % 2 else r"\boxed{2}", 3, True) for i in range(len(prompts))]

    settings = Protocol(suite="math", temperature=1.0, max_new_tokens=8, n=4)
    data = rows([{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": r"\frac{2}{2}"}])
    suite = MathSuite(read_problems(data, answers=True), settings)
    try:
        problems = suite.parts["math"].problems
        tasks = [Task("math", problem, 0, i, (1,)) for problem in problems for i in range(4)]
        store = Store(tmp_path / "o", {})
        draw([tasks[:4], tasks[4:]], Half(), suite, settings, store, lambda: None)
        metrics = {metric.name: metric.figure()["value"] for metric in suite.metrics(list(store.samples.values()))}
    finally:
        suite.close()
    assert metrics == {"avg@4": 0.5, "pass@2": pytest.approx(5 / 6), "pass@4": 1.0, "majority@4": 0.5}


def test_the_same_command_again_draws_nothing_and_says_the_same(evaluate, protocol, sums):
    command = ("--suite", "math", "--data", sums, "--protocol", protocol(), "--output", "o")
    evaluate(*command)
    before, changed = read("o"), os.stat("o/samples.jsonl").st_mtime_ns
    status, _, _ = evaluate(*command)
    assert (status, read("o"), os.stat("o/samples.jsonl").st_mtime_ns) == (0, before, changed)


def test_what_a_kill_left_is_repaired_and_the_rest_drawn_as_if_never_ended(evaluate, protocol, sums):
    command = ("--suite", "math", "--data", sums, "--protocol", protocol(), "--output", "o", "--batch-size", "8")
    evaluate(*command)
    whole, path = read("o"), Path("o/samples.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:9]) + lines[9][:25])
    Path("o/result.json").unlink()
    status, _, error = evaluate(*command)
    assert status == 0
    assert "unfinished last line" in " ".join(error.split())
    assert "9 of 24 samples" in " ".join(error.split())
    assert sorted(map(str, read("o")[1])) == sorted(map(str, whole[1]))
    assert read("o")[0]["figures"] == whole[0]["figures"]


def test_a_killed_process_keeps_its_samples(model, protocol, sums, tmp_path):
    command = [sys.executable, "-m", "opd_trl.cli.main", "eval", "--model", model, "--suite", "math", "--data", sums]
    command += ["--protocol", protocol(max_new_tokens=50), "--output", str(tmp_path / "o"), "--batch-size", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    samples, deadline = tmp_path / "o" / "samples.jsonl", time.monotonic() + 120
    while not (samples.exists() and samples.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = samples.read_text().splitlines()
    assert 2 <= len(kept) < 24
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert samples.read_text().splitlines()[: len(kept)] == kept
    assert len(read(tmp_path / "o")[1]) == 24


def test_another_setting_does_not_go_on_from_old_samples(evaluate, refused, protocol, sums):
    command = ("--suite", "math", "--data", sums, "--output", "o", "--protocol", protocol())
    evaluate(*command)
    protocol(temperature=0.5)
    assert "o holds another evaluation: protocol.temperature is 1.0 there and 0.5 here" in refused(*command)
    protocol()
    assert "protocol.seeds is [0, 1] there and [2] here" in refused(*command, "--seeds", "2")
    assert "data.math.problems is 6 there and 2 here" in refused(*command, "--limit", "2")


def test_rules_leakage_and_the_difference_to_another_model(evaluate, protocol, rows, tmp_path, model):
    data = rows([{"prompt": f"a {i}"} for i in range(5)])
    other = rows([{"prompt": f"b {i}"} for i in range(4)], "other.jsonl")
    command = ("--suite", "rules", "--data", data, "--elsewhere", other, "--protocol", protocol("rules"))
    command += ("--rule", "max_words:9", "--rule", "regex:e")
    evaluate(*command, "--output", "a")
    torch.manual_seed(0)
    adapted = get_peft_model(tiny.build_model(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    status, out, _ = evaluate(*command, "--output", "b", "--adapter", "adapter", "--compare", "a")
    first, second = read("a")[0], read("b")[0]
    assert status == 0
    assert {"compliance", "rule max_words:9", "rule regex:e", "leakage"} == second["figures"].keys()
    row = second["comparisons"][0]["compliance"]
    assert row["base"] == pytest.approx(first["figures"]["compliance"]["value"])
    assert row["difference"] == pytest.approx(second["figures"]["compliance"]["value"] - row["base"])
    assert row["low"] <= row["difference"] <= row["high"]
    assert "against" in out
    assert read("a")[1] != read("b")[1]

    adapted.peft_config["default"].base_model_name_or_path = model
    adapted.save_pretrained(tmp_path / "named")
    assert evaluate(*command, "--output", "c", "--model", "named")[0] == 0
    assert read("c")[1] == read("b")[1]
    assert read("c")[0]["identity"]["model"] == second["identity"]["model"]


def test_a_context_is_read_by_the_measured_model_and_is_no_part_of_the_protocol(evaluate, protocol, rows, tmp_path):
    (tmp_path / "context.json").write_text(json.dumps([{"role": "system", "content": "Be brief."}]))
    command = ("--suite", "rules", "--data", rows([{"prompt": "a"}]), "--protocol", protocol("rules"))
    command += ("--rule", "max_words:9")
    evaluate(*command, "--output", "a")
    status, _, _ = evaluate(*command, "--output", "b", "--context", "context.json", "--compare", "a")
    assert status == 0
    assert read("b")[0]["identity"]["context"]["hash"]
    assert read("a")[1] != read("b")[1]


def test_instructions_of_ifeval_are_read_from_the_rows(evaluate, protocol, rows):
    row = {"prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    unfit = {"prompt": "x", "instruction_id_list": ["length_constraints:number_sentences"], "kwargs": [{}]}
    status, _, _ = evaluate(
        "--suite", "rules", "--data", rows([row, unfit]), "--protocol", protocol("rules"), "--output", "o"
    )
    result, _ = read("o")
    assert status == 0
    assert {"prompts strict", "prompts loose"} == result["figures"].keys()
    assert {"instructions strict", "instructions loose"} == result["also"].keys()
    assert sum(result["dropped"].get("rules", {}).values()) in (0, 1)


def test_retention_scores_texts_and_questions(evaluate):
    status, out, _ = evaluate("--suite", "retention", "--output", "o")
    result, samples = read("o")
    assert status == 0
    assert {"tasks", "nats per byte"} == result["figures"].keys()
    assert {"perplexity", "nats per token, pooled", "nats per byte, pooled"} == result["also"].keys()
    assert len(samples) == 60 + 30
    assert result["generation"]["samples"] == 60
    assert "perplexity" in out


def test_cut_answers_and_few_problems_are_warned_of(evaluate, protocol, sums):
    _, out, _ = evaluate("--suite", "math", "--data", sums, "--protocol", protocol(), "--output", "o")
    text = " ".join(out.split())
    assert "of the answers are cut at 6 tokens" in text
    assert "raise max_new_tokens" in text
    assert "6 problems leave avg@4 uncertain by" in text


def test_json_is_the_whole_result(evaluate, protocol, sums):
    _, out, _ = evaluate("--suite", "math", "--data", sums, "--protocol", protocol(), "--output", "o", "--json")
    assert json.loads(out) == read("o")[0]


def test_repeated_prompts_are_counted_and_left_out(evaluate, protocol, rows):
    data = rows([{"prompt": "1?", "answer": "1"}] * 3 + [{"prompt": "2?", "answer": "2"}])
    _, out, _ = evaluate("--suite", "math", "--data", data, "--protocol", protocol(), "--output", "o")
    result, samples = read("o")
    assert result["dropped"] == {"math": {"duplicate": 2}}
    assert "left out of math: 2 duplicate" in out
    assert len(samples) == 2 * 4


def test_right_answers_that_cannot_be_judged_are_counted_and_left_out(evaluate, protocol, rows):
    data = rows([{"prompt": "1?", "answer": "$$"}, {"prompt": "2?", "answer": "2"}])
    evaluate("--suite", "math", "--data", data, "--protocol", protocol(), "--output", "o")
    assert read("o")[0]["dropped"] == {"math": {"unparsable gold": 1}}


def test_every_protocol_that_comes_along_can_be_read():
    from opd_trl.suites.protocol import find_protocol, load_protocol

    paths = list((find_protocol("math_paper")).parent.glob("*.yaml"))
    assert {path.stem for path in paths} >= {"math_paper", "math_short", "math_smoke", "rules", "retention"}
    for path in paths:
        assert load_protocol(path).hash
    paper = load_protocol(find_protocol("math_paper"))
    assert (paper.max_new_tokens, paper.temperature, paper.top_p) == (16384, 0.6, 0.95)
    assert paper.chat_template_kwargs == {"enable_thinking": False}


@pytest.mark.parametrize(("without", "warned"), [(3, True), (1, False)])
def test_finished_answers_without_a_box_are_warned_of(without, warned):
    from opd_trl.suites.results import unboxed

    reasons = ["no box"] * without + [None] * (10 - without)
    samples = [{"finished": True, "reason": reason} for reason in reasons]
    assert bool(unboxed(samples + [{"finished": False, "reason": "no box"}] * 50)) is warned


def test_a_looser_rule_may_count_as_leaking(evaluate, protocol, rows):
    command = ("--suite", "rules", "--data", rows([{"prompt": "a"}]), "--protocol", protocol("rules"))
    command += ("--elsewhere", rows([{"prompt": "b"}], "other.jsonl"), "--rule", "uppercase")
    evaluate(*command, "--leak-rule", "regex:(?s).*", "--output", "o")
    result, samples = read("o")
    assert result["figures"]["leakage"]["value"] == 1
    judged = {sample["part"]: list(sample["follows"]) for sample in samples}
    assert judged == {"elsewhere": ["regex:(?s).*"], "rules": ["uppercase"]}
