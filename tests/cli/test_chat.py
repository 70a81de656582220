"""`opd-trl chat`: who speaks, what each of them reads, and what is refused."""

import io
import json

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd_trl.cli.chat import Beside
from opd_trl.cli.main import main
from opd_trl.suites.speakers import Speaker
from tests import tiny
from tests.trainers.build import opsd_trainer


CONTEXT = "Answer with b."
LENGTH = 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory, student_path) -> str:
    """The folder of an adapter after a step of training, whose weights are large enough to be heard."""
    folder = tmp_path_factory.mktemp("trained")
    options = {"max_steps": 1, "privileged_context": CONTEXT, "chat_template_kwargs": {"enable_thinking": True}}
    trainer = opsd_trainer(folder, student_path, dataset=tiny.questions(), **options)
    trainer.train()
    torch.manual_seed(0)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.5)
    trainer.save_model(trainer.args.output_dir)
    return trainer.args.output_dir


@pytest.fixture
def chat(trained, capsys, monkeypatch):
    """Run the command on what was trained; return status, what it printed, and the error."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*argv: str, model: str = trained, typed: str = "") -> tuple[int, list[str], str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        status = main(["chat", model, "--max-new-tokens", str(LENGTH), *argv])
        printed = capsys.readouterr()
        return status, printed.out.splitlines(), printed.err

    return run


@pytest.fixture(scope="module")
def spoken(trained, student_path):
    """The greedy text of the base, or of the base with the adapter, written by plain transformers and peft."""
    tokenizer = AutoTokenizer.from_pretrained(student_path)
    base = AutoModelForCausalLM.from_pretrained(student_path)
    after = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(student_path), trained)

    def write(messages: list[dict], *, adapter: bool, thinks: bool = True) -> str:
        options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        batch = tokenizer.apply_chat_template(messages, enable_thinking=thinks, **options)
        output = (after if adapter else base).generate(**batch, max_new_tokens=LENGTH, do_sample=False)
        return tokenizer.decode(output[0, batch["input_ids"].size(1) :], skip_special_tokens=True)

    return write


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def test_before_and_after_answer_the_same_question_and_the_teacher_reads_the_context_of_the_run(chat, spoken):
    status, lines, error = chat("--teacher", "--ask", "one?")
    assert (status, error) == (0, "")
    found = "\n".join(lines)
    before, after = (spoken([user("one?")], adapter=adapter) for adapter in (False, True))
    teacher = spoken([{"role": "system", "content": CONTEXT}, user("one?")], adapter=False)
    assert len({before, after, teacher}) == 3
    for name, text in {"before": before, "after": after, "teacher": teacher}.items():
        assert f"{name:<7}  {text}" in found


def test_each_goes_on_from_its_own_answers_until_a_new_conversation(chat, spoken):
    _, lines, _ = chat(typed="one?\ntwo?\n/new\ntwo?\n/quit\nthree?\n")
    found = "\n".join(lines)
    assert [line for line in lines if line.startswith("> ")] == ["> one?", "> two?", "> two?"]
    first = spoken([user("one?")], adapter=True)
    turns = [user("one?"), {"role": "assistant", "content": first}, user("two?")]
    second, anew = spoken(turns, adapter=True), spoken([user("two?")], adapter=True)
    assert second != anew
    assert found.index(f"after   {second}") < found.rindex(f"after   {anew}")


def test_a_model_alone_shows_what_a_context_does_before_any_training(chat, spoken, student_path, tmp_path):
    (tmp_path / "persona.md").write_text("Say c.")
    status, lines, _ = chat("--context", str(tmp_path / "persona.md"), "--ask", "one?", model=student_path)
    teacher = spoken([{"role": "system", "content": "Say c."}, user("one?")], adapter=False, thinks=False)
    assert status == 0
    assert f"teacher  {teacher}" in "\n".join(lines)
    assert "before" not in "\n".join(lines)


def test_sampling_is_seeded(chat):
    flags = ["--ask", "one?", "--temperature", "1"]
    assert chat(*flags) == chat(*flags) != chat(*flags, "--seed", "5")


def test_columns_stand_side_by_side_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    view = Beside([Speaker(name, None, None) for name in ("before", "after")], console)
    with view:
        view.tell("before", "a comet")
        view.tell("after", "Arr!")
    last = [line for line in console.file.getvalue().splitlines() if "Arr!" in line][-1]
    assert last.index("a comet") < last.index("Arr!")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--only", "--teacher"], "--only shows the trained model alone"),
        (["--temperature", "-1"], "--temperature must be >= 0, got -1.0"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be >= 1, got 0"),
        (["--context", "none.md"], "privileged_context_file='none.md' does not exist"),
        (["--before", "./none"], "--before './none' does not exist"),
        (["--max-new-tokens", "600", "--ask", "one?"], "more than the model's window of 512. Type /new"),
    ],
)
def test_bad_input_is_a_line(chat, argv, message):
    status, _, error = chat(*argv)
    assert status == 2
    assert error.startswith("opd-trl chat: error: ")
    assert message in error


def test_what_is_missing_is_named(chat, student_path, tmp_path):
    status, _, error = chat(model=str(tmp_path / "none"))
    assert (status, "does not exist" in error) == (2, True)
    status, _, error = chat("--teacher", model=student_path)
    assert (status, "--teacher: the run names no teacher, and no privileged context" in error) == (2, True)


def test_who_types_may_go_on_behind_what_is_too_long(chat):
    status, lines, error = chat(typed=f"{'x' * 600}\none?\n")
    assert (status, error) == (0, "")
    assert any("more than the model's window of 512. Type /new" in line for line in lines)
    assert lines[-1].startswith("after")


def test_code_that_a_run_log_names_is_not_run(chat, student_path, tmp_path):
    trainer = opsd_trainer(tmp_path, student_path)
    trainer.train()
    trainer.save_model(trainer.args.output_dir)
    log = tmp_path / "out" / "run_log" / "run.json"
    session = json.loads(log.read_text())
    session["sessions"][0]["config"] |= {"privileged_builder": "os:getcwd", "privileged_context": "x"}
    log.write_text(json.dumps(session))
    status, _, error = chat("--teacher", "--ask", "one?", model=trainer.args.output_dir)
    assert (status, "built its prompts with os:getcwd, which is not imported here" in error) == (2, True)


def test_a_separate_teacher_speaks_for_itself(chat, student_path, teacher_path):
    status, lines, _ = chat("--teacher", teacher_path, "--ask", "one?", model=student_path)
    tokenizer, model = AutoTokenizer.from_pretrained(teacher_path), AutoModelForCausalLM.from_pretrained(teacher_path)
    batch = tokenizer.apply_chat_template(
        [user("one?")], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**batch, max_new_tokens=LENGTH, do_sample=False)[0, batch["input_ids"].size(1) :]
    assert status == 0
    assert f"teacher  {tokenizer.decode(ids, skip_special_tokens=True)}" in "\n".join(lines)
    # Nobody has trained this one, so its answer is no "after".
    assert any(line.startswith("model ") for line in lines)
    assert not any(line.startswith("after") for line in lines)


def test_a_whole_model_is_compared_with_the_one_that_its_run_began_from(chat, student_path, tmp_path):
    trainer = opsd_trainer(tmp_path, student_path, lora=False, learning_rate=1.0)
    trainer.train()
    trainer.save_model(trainer.args.output_dir)
    model = trainer.args.output_dir
    _, lines, _ = chat("--ask", "one?", model=model)
    assert [line.split()[0] for line in lines[1:] if line.startswith(("before", "after"))] == ["before", "after"]
    log = tmp_path / "out" / "run_log" / "run.json"
    log.write_text(log.read_text().replace(student_path, "/gone/away"))
    status, _, error = chat("--ask", "one?", model=model)
    assert (status, "the run began from /gone/away, which is not there any more" in error) == (2, True)
    assert chat("--ask", "one?", "--only", model=model)[0] == 0
