"""`opd-trl init`: what it writes is a recipe that trains, and commands that exist."""

import json
import re
import shlex

import pytest
import yaml

from opd_trl.cli.main import COMMANDS, main
from opd_trl.evaluation import parse_rule


SHRUNK = [
    "--max_steps",
    "1",
    "--max_completion_length",
    "4",
    "--use_cpu",
    "--bf16",
    "false",
    "--per_device_train_batch_size",
    "2",
]


@pytest.mark.parametrize("other", [False, True], ids=["self", "teacher"])
def test_the_recipe_parses_and_trains(here, student_path, teacher_path, parse, capsys, other):
    flags = ["--teacher", teacher_path] if other else []
    assert main(["init", "sub/mine", "--model", student_path, *flags]) == 0
    commands = [line.split("  #")[0].strip() for line in capsys.readouterr().out.splitlines()[1:]]
    text = (here / "sub/mine/recipe.yaml").read_text()
    for command in commands:
        assert shlex.split(command)[1] in COMMANDS
        assert command in text
    name = "opd" if other else "opsd"
    assert any(command == f"opd-trl {name} --config sub/mine/recipe.yaml" for command in commands)
    context = here / "sub/mine/context.json"
    assert context.exists() is not other
    if not other:  # all examples are more than the 512 tokens that the tiny model reads
        context.write_text(json.dumps(json.loads(context.read_text())[:3]))
    main([name, "--config", "sub/mine/recipe.yaml", *SHRUNK])
    assert (here / "runs/mine/adapter_model.safetensors").is_file()
    assert yaml.safe_load(text)["output_dir"] == "runs/mine"


def test_its_rules_are_rules(here, capsys):
    main(["init", "mine"])
    rules = re.findall(r"--rule (\S+)", capsys.readouterr().out)
    (judge,) = [parse_rule(rule) for rule in rules]
    answers = [x["content"] for x in json.loads((here / "mine/context.json").read_text()) if x["role"] == "assistant"]
    assert len(answers) == 4
    assert all(judge(answer) for answer in answers)


def test_nothing_is_written_over(here, capsys):
    assert main(["init", "mine"]) == 0
    (here / "mine/recipe.yaml").unlink()
    (here / "mine/context.json").write_text("my own")
    assert main(["init", "mine"]) == 2
    assert "mine holds prompts.jsonl, test.jsonl, context.json already" in capsys.readouterr().err
    assert (here / "mine/context.json").read_text() == "my own"
    assert not (here / "mine/recipe.yaml").exists()


@pytest.mark.parametrize("argv", [["a: b"], ["mine", "--model", "x # y"], ["mine", "--teacher", "{x}"]])
def test_names_that_would_break_the_recipe_are_refused(here, capsys, argv):
    assert main(["init", *argv]) == 2
    assert "letters, digits" in capsys.readouterr().err
    assert list(here.iterdir()) == []
