"""`benchmarks/internalise.py`: which cells there are, their lines, and runs that go on where they were stopped."""

import json
import re
import time

import internalise
import pytest
from children import ChildError
from internalise import BEFORE, FIELDS, RESULTS, all_cells, cell_of, folder_of, main
from lines import Deadline, Results, read_lines
from measure import opd_trl
from peft import LoraConfig, get_peft_model

from tests import tiny

from .lines import CONDITIONS, evaluated, line, trained


def test_the_references_come_first_then_seed_after_seed_and_sft_after_what_it_matches():
    cells = all_cells()
    assert [cell[1] for cell in cells[:6]] == ["before", "teacher"] * 3
    assert [cell[2] for cell in cells[6:]] == [0] * 12 + [1] * 12 + [2] * 12
    for rule, objective, seed in cells[6:]:
        assert cells.index((rule, objective, seed)) <= cells.index((rule, "sft", seed))


def add_line(path, line):
    Results(path, fields=FIELDS).add(**line)


class Children:
    """In place of processes: cells take a moment, and those of `broken` fail."""

    def __init__(self, broken, *_):
        self.broken, self.asked, self.together, self.most = broken, [], 0, 0

    def call(self, function, args, budget, **options):
        cell = (args.rule, args.objective, args.seed)
        self.asked.append((cell, budget))
        self.together += 1
        self.most = max(self.most, self.together)
        time.sleep(0.002)
        self.together -= 1
        if cell in self.broken:
            raise ChildError("out of memory")
        tokens = {"stop_gradient_topk": 4000, "forward_kl": 3000}.get(args.objective, 3500)
        return line(*cell, completion_tokens=tokens, wall_seconds=1.0)


def test_a_run_goes_on_from_its_lines_and_keeps_them_when_a_cell_fails(tmp_path, monkeypatch, capsys):
    children = Children({("json", "sft", 0)})
    monkeypatch.setattr(internalise, "Children", lambda logs, device: children)
    argv = ["--results", str(tmp_path / "new" / "r.jsonl"), "--output", str(tmp_path), "--rule", "json", "--seed", "0"]
    assert main([*argv, "--objective", "sft"]) == 2
    assert "sft, seed 0: it needs the tokens of cells that are not finished" in capsys.readouterr().err
    assert main(argv) == 2
    assert "json, sft, seed 0: out of memory" in capsys.readouterr().err
    order = ["before", "teacher", "stop_gradient_topk", "forward_kl", "jsd", "sft"]
    assert [cell[1] for cell, _ in children.asked] == order
    assert main(argv) == 2
    assert children.asked[5:] == 2 * [(("json", "sft", 0), 3500)]  # the mean of the others
    assert len(read_lines(tmp_path / "new" / "r.jsonl", FIELDS)) == 5


def test_cells_share_the_card_sft_waits_and_the_time_is_kept(tmp_path):
    def run(name, minutes=1000.0):
        found = Children({("json", "jsd", 1)})
        results = Results(tmp_path / name, fields=FIELDS)
        arguments = (found, results, all_cells(), "model", tmp_path / "cells", Deadline.after(minutes))
        return found, results.done, internalise.run_cells(*arguments, jobs=3)

    children, done, failed = run("all.jsonl")
    assert failed[0] == "json, jsd, seed 1: out of memory"
    assert failed[1:] == ["json, sft, seed 1: it needs the tokens of cells that are not finished"]
    assert set(all_cells()) - done() == {("json", "jsd", 1), ("json", "sft", 1)}
    assert 1 < children.most <= 3
    children, done, failed = run("none.jsonl", minutes=0.9)  # less than a cell may take
    assert (children.asked, done(), failed) == ([], set(), [])


def retention_of(folder, *more):
    """The command that evaluates the adapters of a folder."""
    files = {"--results": "r.jsonl", "--retention-results": "kept.jsonl", "--output": "cells"}
    paths = [text for flag, name in files.items() for text in (flag, str(folder / name))]
    return ["--retention", "--model", "student", *paths, *more]


def add_cells(folder, *cells, adapters=True):
    """Finished cells, with something that looks like their adapters."""
    for cell in cells:
        add_line(folder / "r.jsonl", cell)
        if adapters:
            place = folder_of(folder / "cells", cell_of(cell)) / "adapter"
            place.mkdir(parents=True)
            (place / "adapter_config.json").write_text("{}")


def test_finished_adapters_are_evaluated_after_the_student_and_those_with_a_line_are_not_again(tmp_path, monkeypatch):
    asked = []

    def evaluate(cell, model, adapter, output):
        asked.append((cell, adapter and adapter.parent.name, output.parent.name))
        if len(asked) == 3:
            raise RuntimeError("killed")
        return evaluated(*cell)

    monkeypatch.setattr(internalise, "evaluate", evaluate)
    add_line(tmp_path / "r.jsonl", line(objective="teacher"))
    add_cells(tmp_path, trained("jsd"), trained("sft"), trained("jsd", seed=1))
    assert main(retention_of(tmp_path, "--seed", "0")) == 2
    assert asked == [
        (BEFORE, None, "any-before-0"),
        (("json", "jsd", 0), "json-jsd-0", "json-jsd-0"),
        (("json", "sft", 0), "json-sft-0", "json-sft-0"),
    ]
    assert main(retention_of(tmp_path)) == 0
    assert [cell for cell, *_ in asked[3:]] == [("json", "sft", 0), ("json", "jsd", 1)]
    assert len(read_lines(tmp_path / "kept.jsonl", FIELDS)) == 4


def test_a_finished_cell_without_its_adapter_is_named_before_anything_is_run(tmp_path, capsys):
    add_cells(tmp_path, trained("jsd"), adapters=False)
    assert main(retention_of(tmp_path)) == 2
    assert "json-jsd-0/adapter holds no adapter" in capsys.readouterr().err
    assert not (tmp_path / "kept.jsonl").exists()


def test_an_adapter_is_evaluated_by_the_command_with_all_questions_and_texts_in_the_order_of_their_ids(tmp_path):
    model, adapter, output = tiny.save(tmp_path / "student"), tmp_path / "cell" / "adapter", tmp_path / "cell" / "out"
    get_peft_model(tiny.build_model(), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(adapter)
    found = internalise.evaluate(("json", "jsd", 0), model, adapter, output)
    samples = [json.loads(text) for text in (output / "samples.jsonl").read_text().splitlines()]
    nats = {x["problem"]: round(x["nats"] / x["bytes"], 5) for x in samples if x["part"] == "texts"}
    assert list(nats) != sorted(nats)
    assert found["nats_per_byte"] == [nats[text] for text in sorted(nats)]
    assert (len(found["tasks"]), len(nats)) == (60, 30)
    assert all(value > 0 for value in nats.values())
    assert cell_of(found) == ("json", "jsd", 0)
    assert str(tmp_path) not in json.dumps(found)
    identity = json.loads((output / "run.json").read_text())
    assert (identity["model"]["path"], identity["adapter"]["path"]) == (model, str(adapter))


def test_a_command_that_fails_names_its_log(tmp_path):
    with pytest.raises(RuntimeError, match=r"opd-trl nonsense ended with status 2; its log: .*retention\.log"):
        opd_trl("nonsense", log=tmp_path / "cell" / "retention.log")
    assert "nonsense" in (tmp_path / "cell" / "retention.log").read_text()


def test_the_plot_is_written(tmp_path):
    for rule in ("json", "pirate"):
        add_line(tmp_path / "r.jsonl", trained("jsd") | {"rule": rule} | CONDITIONS)
    picture = tmp_path / "docs" / "p.png"
    assert main(["--results", str(tmp_path / "r.jsonl"), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("action", ["--table", "--plot=p.png"])
def test_without_a_finished_cell_there_is_nothing_to_show(tmp_path, monkeypatch, capsys, action):
    monkeypatch.chdir(tmp_path)
    assert main(["--results", "none.jsonl", action]) == 2
    assert "no finished cell" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_results_that_are_kept_here_hold_one_verdict_per_question():
    for entry in read_lines(RESULTS, FIELDS):
        assert {len(entry[name]) for name in ("greedy", "sampled", "elsewhere")} == {48}
        assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?", entry["commit"])
