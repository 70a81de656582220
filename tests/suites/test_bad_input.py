import json
import os
from pathlib import Path

import pytest

from opd_trl.cli.main import main
from opd_trl.suites.protocol import load_protocol


@pytest.fixture
def math(protocol):
    return ("--suite", "math", "--protocol", protocol(), "--output", "out")


def test_a_file_that_is_not_utf8_is_named_with_its_line(refused, math, tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "a", "answer": "1"}\n{"prompt": "caf\xe9", "answer": "2"}\n')
    assert "latin.jsonl, line 2 is not UTF-8" in refused(*math, "--data", str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "has no problem"),
        ('{"prompt": "a"', "line 1 is not JSON"),
        ("[1]\n", "line 1 holds a list"),
        ('{"question": "a", "answer": "1"}\n', 'row 1 has no prompt (columns: question, answer). Expected "prompt"'),
        ('{"prompt": "", "answer": "1"}\n', "row 1 has no prompt"),
        ('{"prompt": [{"role": "assistant", "content": "a"}], "answer": "1"}\n', "end with a user turn"),
        ('{"prompt": "a"}\n', "row 1 has no answer"),
        ('{"prompt": "a", "answer": ""}\n', "row 1 has no answer"),
        (
            '{"prompt": "a", "answer": "1"}\n{"prompt": "a", "answer": "2"}\n',
            "rows 1 and 2 have the same prompt",
        ),
        ('{"prompt": "a", "answer": "$$"}\n', "no problem is left (1 unparsable gold)"),
    ],
)
def test_rows_that_are_none_are_named(refused, math, tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_text(content)
    assert message in refused(*math, "--data", "rows.jsonl")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "missing.jsonl"], "missing.jsonl does not exist"),
        (["--data", "math5000"], "did you mean math500?"),
        ([], "--data is missing. A whole command: opd-trl eval --model runs/opd --suite math --data math500"),
        (["--data", "x.jsonl", "--rule", "uppercase"], "belong to --suite rules"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(refused, math, argv, message):
    assert message in refused(*math, *argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--suite rules needs a rule"),
        (["--rule", "upercase"], "did you mean uppercase?"),
        (["--elsewhere", "x.jsonl"], "give the rule with --rule"),
        (["--rule", "uppercase", "--leak-rule", "uppercase"], "--elsewhere FILE, which is missing"),
        (["--rule", "uppercase", "--elsewhere", "rows.jsonl"], "1 prompts stand in both"),
        (["--rule", "uppercase", "--context", "no.txt"], "'no.txt' does not exist"),
    ],
)
def test_rules_that_cannot_be_judged_are_refused(refused, protocol, rows, argv, message):
    data = rows([{"prompt": "a"}])
    assert message in refused("--suite", "rules", "--protocol", protocol("rules"), "--data", data, *argv)


def test_an_unknown_instruction_in_a_row_is_refused(refused, protocol, rows):
    data = rows([{"prompt": "a", "instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}])
    error = refused("--suite", "rules", "--protocol", protocol("rules"), "--data", data)
    assert "punctuation:no_coma" in error
    assert "punctuation:no_comma" in error


@pytest.mark.parametrize("option", ["--model", "--adapter"])
def test_a_model_folder_that_is_not_there_or_no_model_is_named(refused, math, sums, tmp_path, option):
    assert f"{option} './nowhere' does not exist" in refused(*math, "--data", sums, option, "./nowhere")
    (tmp_path / "empty").mkdir()
    assert "it has nothing" in refused(*math, "--data", sums, option, str(tmp_path / "empty"))


def test_an_output_that_cannot_be_written_is_refused(refused, math, sums, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--output file/out cannot be written" in refused(*math, "--data", sums, "--output", "file/out")


def test_samples_of_nobody_knows_what_are_not_added_to(refused, math, sums, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "samples.jsonl").write_text("")
    assert "no run.json that says of what" in refused(*math, "--data", sums)


def test_a_broken_line_in_the_middle_of_the_samples_is_named(evaluate, math, sums):
    evaluate(*math, "--data", sums)
    path = Path("out/samples.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{\n", *lines[1:]]))
    status, _, error = evaluate(*math, "--data", sums)
    assert status == 2
    assert "samples.jsonl, line 2 is not a sample" in error


def test_a_comparison_of_what_is_not_alike_is_refused_at_once(evaluate, refused, math, protocol, sums):
    assert "no result.json" in refused(*math, "--data", sums, "--compare", "nowhere")
    evaluate(*math, "--data", sums)
    other = ("--suite", "math", "--data", sums, "--output", "other", "--compare", "out")
    error = refused(*other, "--protocol", protocol(max_new_tokens=7))
    assert "protocol.max_new_tokens is 6 there and 7 here" in error
    assert not os.path.exists("other")
    assert "data.math.problems is 6 there and 3 here" in refused(*other, "--protocol", protocol(), "--limit", "3")


def test_a_prompt_and_answer_longer_than_the_context_are_refused(refused, protocol, sums):
    error = refused("--suite", "math", "--data", sums, "--protocol", protocol(max_new_tokens=500), "--output", "o")
    assert "more than the model's context of 512" in error
    assert "--max-new-tokens 4" in error


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temprature": 1}, "unknown key 'temprature': did you mean temperature?"),
        ({"temperature": -1}, "temperature must be a number of at least 0, got -1"),
        ({"temperature": "hot"}, "got 'hot'"),
        ({"top_p": 0}, "top_p must be in (0, 1]"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number above 0"),
        ({"n": True}, "n must be a whole number"),
        ({"seeds": [0, 0]}, "seeds must be a list of different whole numbers"),
        ({"seeds": 0}, "seeds must be a list"),
        ({"suite": "maths"}, "suite must be one of math, rules, retention"),
        ({"temperature": 0}, "temperature 0 gives the same answer every time, got n=2"),
        ({"prompt_template": "Box it."}, "prompt_template must be a text that holds {prompt}"),
        ({"chat_template": "no.jinja"}, "chat_template: no file no.jinja beside it"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs must be a mapping"),
    ],
)
def test_a_protocol_is_read_strictly(protocol, tmp_path, values, message):
    with pytest.raises(ValueError, match=r"protocol\.yaml: ") as error:
        load_protocol(Path(protocol(**values)))
    assert message in str(error.value)


def test_a_protocol_says_how_answers_are_sampled(tmp_path, refused):
    (tmp_path / "p.yaml").write_text("suite: math\n")
    assert "temperature, max_new_tokens is missing" in refused(
        "--suite", "math", "--data", "x", "--protocol", "p.yaml"
    )
    assert "did you mean math_paper?" in refused("--suite", "math", "--data", "x", "--protocol", "math_papr")
    assert "not math" in refused("--suite", "math", "--data", "x", "--protocol", "rules")
    assert "seeds must be" in refused("--suite", "math", "--data", "x", "--seeds", "0,0")
    assert "--seeds must be whole numbers" in refused("--suite", "math", "--data", "x", "--seeds", "0,x")


def test_a_protocol_hash_does_not_depend_on_where_its_files_lie(tmp_path):
    hashes = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "texts.jsonl").write_text(json.dumps({"text": "Some words."}))
        keys = "suite: retention\ntemperature: 0\nmax_new_tokens: 4\ntexts: texts.jsonl\ntasks: texts.jsonl\n"
        (folder / "p.yaml").write_text(keys)
        hashes.append(load_protocol(folder / "p.yaml").hash)
    assert hashes[0] == hashes[1]
    (tmp_path / "a" / "texts.jsonl").write_text(json.dumps({"text": "Other words."}))
    assert load_protocol(tmp_path / "a" / "p.yaml").hash != hashes[0]


def test_a_tokenizer_without_chat_template_is_refused_with_a_remedy(protocol, sums, tmp_path, capsys):
    from opd_trl.cli.main import main
    from tests import tiny

    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = None
    model = tiny.save(tmp_path / "base", tokenizer=tokenizer)
    argv = ["eval", "--model", model, "--suite", "math", "--data", sums, "--output", str(tmp_path / "o")]
    assert main([*argv, "--protocol", protocol()]) == 2
    assert "no chat template" in capsys.readouterr().err
    (tmp_path / "plain.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    assert main([*argv, "--protocol", protocol(chat_template="plain.jinja")]) == 0


def test_a_right_answer_that_cannot_be_read_is_named_by_its_row_and_left_out(evaluate, math, rows):
    data = rows([{"prompt": "a", "answer": 1e-05}, {"prompt": "b", "answer": "?!"}, {"prompt": "c", "answer": [1, 2]}])
    status, out, err = evaluate(*math, "--data", data, "--json")
    assert status == 0
    assert f"{data}, row 2: the right answer '?!' cannot be read" in err
    assert err.count("cannot be read") == 1
    assert json.loads(out)["dropped"] == {"math": {"unparsable gold": 1}}


def test_what_is_missing_is_said_at_once_with_a_whole_command(capsys):
    assert main(["eval"]) == 2
    said = capsys.readouterr().err
    assert "--model and --suite and --data are missing. A whole command: opd-trl eval --model runs/opsd" in said
    assert main(["eval", "--suite", "retention"]) == 2
    assert (
        "--model is missing. A whole command: opd-trl eval --model runs/opd --suite retention"
        in capsys.readouterr().err
    )
