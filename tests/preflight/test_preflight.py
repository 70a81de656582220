"""`opd-trl preflight` as a user calls it: planted faults are found, in the words that they are announced with."""

import pytest

from opd_trl.cli.main import main
from opd_trl.cli.preflight import help_text
from opd_trl.preflight.checks import CHECKS
from tests import tiny


def preflight(run, recipe, *argv, **options):
    status, printed, figures = run("preflight", "--config", recipe(**options), "--prompts", "8", *argv)
    found = {finding["name"]: finding for finding in figures["findings"]}
    assert len(found) == len(figures["findings"])
    for finding in figures["findings"]:
        assert " ".join(finding["sentence"].split()).split()[0] in printed
    return status, printed, found, figures


def test_every_section_reports_and_nothing_but_the_json_is_written(run, recipe, tmp_path):
    status, printed, found, figures = preflight(run, recipe)
    assert status == int(figures["verdict"] == "stop")
    for title in ("Templates", "mechanism 1", "Coverage", "mechanism 2", "Cost"):
        assert title in printed
    assert "student reads" in printed
    assert found["vocabulary"]["verdict"] == "ok"
    assert found["teacher's template"]["verdict"] == "ok"
    assert found["gradient"]["verdict"] in ("ok", "fix")
    assert figures["cost"]["total"] > 0
    assert len(figures["tokens"]["by_quarter"]["overlap"]) == 4
    assert not [finding for finding in figures["findings"] if finding["verdict"] == "not run"]
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "train.jsonl", "figures.json"}
    # Each section is named when it begins, in this order.
    titles = ["The student answers 8 prompts", *(check.title for check in CHECKS)]
    places = [printed.find(f"[{i}/{len(titles)}] {title}") for i, title in enumerate(titles, 1)]
    assert -1 not in places
    assert places == sorted(places)


def test_a_mean_of_teachers_is_checked_whole_but_for_answers_of_its_own(run, recipe, teacher_path, tmp_path):
    other = tiny.save(tmp_path / "other", seed=2, hidden_size=64)
    shares = [{"math": 0.7, "code": 0.3}, {"math": 0.2, "code": 0.8}]
    rows = [
        {
            "prompt": f"{'a' * (i + 1)} plus {i}?",
            "privileged_context": f"{i} b",
            "answer": "b",
            "shares": shares[i % 2],
        }
        for i in range(8)
    ]
    options = {"teacher_model_name_or_path": None, "teachers": {"math": teacher_path, "code": other}}
    _, printed, found, figures = preflight(run, recipe, "--prompts", "4", rows=rows, teacher_mix="shares", **options)
    assert [name for name, finding in found.items() if finding["verdict"] == "not run"] == ["answers"]
    assert "this teacher scores and writes nothing here: it is served, a mean of several" in printed
    assert found["gradient"]["verdict"] in ("ok", "fix")
    assert figures["tokens"]["mean"]["forward_kl"] > 0
    assert figures["context"]["own"][0] > 0


def test_a_teacher_of_another_tokenizer_family_is_found(run, recipe, tmp_path):
    other = tiny.save(tmp_path / "other", tokenizer=tiny.build_tokenizer(reverse=True), seed=1)
    status, printed, found, _ = preflight(run, recipe, teacher_model_name_or_path=other)
    assert status == 1
    assert found["the trainer refuses"]["verdict"] == "stop"
    assert "student and teacher have different vocabularies" in printed
    assert "Set teacher_vocabulary: text" in printed


def test_a_teacher_fed_the_wrong_template_is_found(run, recipe, tmp_path):
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[reply] "
    other = tiny.save(tmp_path / "other", tokenizer=tokenizer, seed=1)
    _, printed, found, _ = preflight(run, recipe, teacher_model_name_or_path=other)
    assert found["teacher's template"]["verdict"] == "fix"
    assert found["teacher's template"]["figure"].startswith("differs from token 1:")
    assert (
        "The teacher reads the student's chat template, and its own renders the same prompt otherwise."
        in (found["teacher's template"]["sentence"])
    )
    assert "teacher_chat_template_kwargs" in printed


def test_a_system_prompt_that_the_template_leaves_out_is_found(run, recipe, tmp_path):
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE.replace(
        "{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"
    )
    student = tiny.save(tmp_path / "student", tokenizer=tokenizer)
    options = {"teacher_model_name_or_path": None, "privileged_context": "Say b.", "model_name_or_path": student}
    status, _, found, _ = preflight(run, recipe, **options)
    assert status == 1
    assert found["the trainer refuses"]["verdict"] == "stop"
    lost = "row 0 of the train set: the chat template leaves out the text of turn 0 (system) of the teacher's prompt"
    assert lost in found["the trainer refuses"]["sentence"]


@pytest.mark.parametrize(
    ("template", "options", "sentence"),
    [
        (
            "{{ raise_exception('System role not supported') if messages[0]['role'] == 'system' }}"
            + tiny.CHAT_TEMPLATE,
            {"teacher_model_name_or_path": None, "privileged_context": "Say b."},
            "System role not supported. Set privileged_builder: hint",
        ),
        (
            tiny.CHAT_TEMPLATE,
            {"max_completion_length": 500},
            "at most 12 fit (the student's window of 512 tokens less",
        ),
        (tiny.CHAT_TEMPLATE, {"per_device_train_batch_size": 16}, "too few rows, 8: one batch takes 16"),
    ],
)
def test_what_the_rows_are_refused_for_is_reported(run, recipe, tmp_path, template, options, sentence):
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = template
    student = tiny.save(tmp_path / "student", tokenizer=tokenizer)
    status, _, found, _ = preflight(run, recipe, model_name_or_path=student, **options)
    assert (status, found["the trainer refuses"]["verdict"]) == (1, "stop")
    assert sentence in found["the trainer refuses"]["sentence"]


def test_a_system_prompt_that_is_cut_is_found(run, recipe, tmp_path):
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'][-30:] }}")
    student = tiny.save(tmp_path / "student", tokenizer=tokenizer)
    options = {"teacher_model_name_or_path": None, "privileged_context": "Answer with the letter b alone, always."}
    status, printed, found, _ = preflight(run, recipe, model_name_or_path=student, **options)
    assert status == 1
    assert found["privileged context"]["verdict"] == "stop"
    assert "a chat template that renders system messages whole" in printed


def test_contexts_that_were_cut_before_are_found(run, recipe):
    rows = [{"prompt": f"Question {i}?", "privileged_context": "solution " * (4 + i)} for i in range(8)]
    rows = [row | {"privileged_context": row["privileged_context"][:60]} for row in rows]
    _, _, found, _ = preflight(run, recipe, teacher_model_name_or_path=None, rows=rows)
    assert found["length of contexts"]["verdict"] == "fix"
    assert "have exactly 60 characters" in found["length of contexts"]["figure"]
    assert found["length of contexts"]["sentence"] == "The privileged contexts look cut off before they came here."


def test_contexts_that_differ_per_row_are_split_into_what_can_be_learned_and_what_cannot(run, recipe):
    rows = [{"prompt": f"Question {i}?", "privileged_context": "abcdefgh"[i] * (9 + i)} for i in range(8)]
    _, printed, found, figures = preflight(run, recipe, "--contexts", "3", teacher_model_name_or_path=None, rows=rows)
    assert 0 < found["share that cannot be learned"]["value"] < 1
    assert found["belongs to its row"]["verdict"] in ("ok", "fix")
    assert figures["context"]["contexts"] == 3
    assert figures["context"]["learnable"][0] + figures["context"]["irreducible"][0] == pytest.approx(
        figures["context"]["total"][0]
    )
    assert "the context without the question" in printed


def test_plain_topk_is_found(run, recipe):
    status, printed, found, _ = preflight(run, recipe, loss_tail="drop", stop_gradient=False)
    assert status == 1
    assert found["gradient"]["verdict"] == "stop"
    assert "The configured loss is stationary away from the teacher" in found["gradient"]["sentence"]
    assert "This run cannot work as it is." in printed


def test_a_teacher_that_is_the_student_itself_is_found(run, recipe, student_path):
    status, _, found, _ = preflight(run, recipe, teacher_model_name_or_path=student_path)
    assert status == 1
    assert found["reverse KL"]["verdict"] == "stop"
    assert found["reverse KL"]["sentence"] == (
        "The teacher gives the student's own distributions: there is nothing to learn."
    )


def test_a_base_student_without_the_eos_of_its_template_is_found(run, recipe, tmp_path):
    tokenizer = tiny.build_tokenizer()
    tokenizer.eos_token = tiny.PAD
    student = tiny.save(tmp_path / "student", tokenizer=tokenizer, eos_token_id=0)
    status, _, found, _ = preflight(run, recipe, model_name_or_path=student)
    assert status == 1
    assert found["EOS"]["verdict"] == "stop"
    assert "The student's template ends a turn with a token that is not its EOS" in found["EOS"]["sentence"]
    assert found["EOS of both"]["verdict"] == "fix"


def test_a_thinking_teacher_of_a_student_that_does_not_think_is_found(run, recipe):
    _, _, found, _ = preflight(run, recipe, teacher_chat_template_kwargs={"enable_thinking": True})
    assert found["thinking"]["verdict"] == "fix"
    assert "malformed tags" in found["thinking"]["sentence"]


def test_answers_are_judged_by_a_rule(run, recipe):
    _, _, found, figures = preflight(run, recipe, "--rule", "min_words:1")
    assert found["teacher against student"]["figure"]
    assert "teacher on student prefixes" not in found
    assert 0 <= figures["answers"]["teacher"] <= 1


def test_teachers_are_ranked_by_their_overlap_and_a_refused_one_comes_last(
    run, recipe, student_path, teacher_path, tmp_path
):
    other = tiny.save(tmp_path / "other", tokenizer=tiny.build_tokenizer(reverse=True), seed=1)
    teachers = [argument for path in (other, teacher_path, student_path) for argument in ("--teacher", path)]
    _, printed, _, figures = preflight(run, recipe, *teachers, teacher_model_name_or_path=student_path)
    assert [row["name"] for row in figures["ranking"]] == [student_path, teacher_path, other]
    assert figures["ranking"][0]["overlap"] == pytest.approx(1.0)
    assert "different vocabularies" in figures["ranking"][2]["refused"]
    assert "Teachers, the best overlap first" in printed


def test_a_teacher_to_rank_is_enough_where_the_recipe_names_none(run, recipe, teacher_path):
    _, _, _, figures = preflight(run, recipe, "--teacher", teacher_path, teacher_model_name_or_path=None)
    assert [row["name"] for row in figures["ranking"]] == [teacher_path]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--prompts", "0"], "--prompts must be >= 1, got 0."),
        (["--contexts", "1"], "--contexts must be >= 2, got 1"),
        (["--rule", "max_word:3"], "did you mean max_words?"),
        (["--dataset_name", "gone.jsonl"], "gone.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_status_2(recipe, capsys, argv, says):
    try:
        status = main(["preflight", "--config", recipe(), *argv])
    except SystemExit as exit_:
        status = exit_.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.splitlines()[-1].startswith("opd-trl preflight: error: ")
    assert says in error


def test_help_teaches(capsys):
    assert main(["preflight", "--help"]) == 0
    assert capsys.readouterr().out == help_text()
