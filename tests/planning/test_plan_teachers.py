"""`opd-trl plan` of recipes whose teachers are served, or several."""

import pytest

from opd_trl.scripts.recipe_files import find_recipe
from tests.planning.sized import component


OPD, URL = "math/opd_qwen3_1.7b_from_8b", "http://127.0.0.1:8001"
SERVED = ["--teacher_server_url", URL]


@pytest.fixture
def without_teacher(here) -> str:
    """The recipe less its teacher."""
    lines = find_recipe(OPD).read_text().splitlines(keepends=True)
    (here / "mine.yaml").write_text("".join(line for line in lines if not line.startswith("teacher_model")))
    return "mine.yaml"


def test_a_recipe_with_a_server_is_no_self_distillation(plan, without_teacher, here):
    by_flag = plan(*SERVED, config=without_teacher)
    text = (here / without_teacher).read_text()
    (here / "served.yaml").write_text(f"{text}\nteacher_server_url: {URL}\n")
    assert plan(config="served.yaml") == by_flag
    assert by_flag["teachers"] == [{"name": "", "parameters": None, "served": True}]
    assert "teacher of unknown size behind HTTP" in plan.text


@pytest.mark.parametrize("support", ["student", "union", "full", "teacher", "intersection", "sampled"])
def test_what_is_not_counted_of_a_served_teacher_is_said(support, plan, without_teacher):
    figures = plan(*SERVED, "--loss_support", support, config=without_teacher)
    (note,) = figures["notes"]
    assert note in plan.text
    assert "NOT COUNTED: the LM head and the hidden states of the served teacher" in note
    assert note.endswith("Give --teacher-config DIR to count them.")
    assert ("which this run needs" in note) == (support in ("student", "union", "full"))
    assert ("counted as vLLM's completions endpoint" in note) == (support in ("teacher", "intersection", "sampled"))
    ahead = 8 * 4096 * 20 * 12 if support in ("teacher", "intersection", "sampled") else 0
    assert component(figures, "TopK scored ahead") == ahead


def test_the_sizes_of_a_served_teacher_may_be_given(plan, without_teacher):
    flags = [*SERVED, "--loss_support", "student", "--teacher-config", "teacher"]
    figures = plan(*flags, config=without_teacher)
    assert component(figures, "teacher's head") == 103 * 128 * 4
    assert component(figures, "scored ahead") == 8 * 4096 * 128 * 4  # 4 steps of 2 completions, float32
    assert figures["notes"] == [
        "The served teacher is counted as opd-trl serve-teacher or vLLM's pooling runner: its LM head and its hidden "
        "states lie here. A completion of 4,096 tokens behind 512 of prompt takes 2.0 MiB on the wire from the first "
        "(512 B a token), 2.2 MiB from the second, which sends the prompt's states too."
    ]
    dtype = ["--teacher_model_init_kwargs", '{"dtype": "bfloat16"}']  # of models in this job
    assert component(plan(*flags, *dtype, config=without_teacher), "teacher's head") == 103 * 128 * 4
    (note,) = plan(*flags, "--loss_support", "sampled", config=without_teacher)["notes"]
    assert "vLLM's completions endpoint would leave its TopK alone" in note


def test_a_local_copy_of_a_served_teacher_is_there_at_start_alone(plan):
    figures = plan(*SERVED)
    assert figures["teacher_parameters"] == component(figures, "teacher weights") == 0
    assert component(figures, "teacher's head") > 0
    assert figures["notes"][1].startswith("Qwen/Qwen3-8B is a local copy for the parity check at start, 0.00 GiB")
    assert "not resident during training and not counted. Of vLLM's pooling runner its LM head alone" in plan.text


def test_a_teacher_of_another_tokenizer_has_a_copy_of_its_head_by_the_students_ids(plan, without_teacher):
    flags = [*SERVED, "--teacher-config", "teacher", "--teacher_vocabulary", "text"]
    figures = plan(*flags, config=without_teacher)
    assert component(figures, "copy of the teacher's head") == 103 * 128 * 4
    assert "local copy" not in plan.text  # of which the tokenizer alone is read


def test_a_local_copy_whose_sizes_cannot_be_read_is_an_error(refuse, configs):
    assert "for the teacher 'Qwen/Qwen3-8B'" in refuse("--config", OPD, *configs[:2], *SERVED)


def test_a_mix_is_read_from_the_recipe_and_a_wrong_one_is_refused(plan, refuse, without_teacher):
    teachers = ["--teachers", '{"math": "teacher", "code": "teacher"}']
    configs = ["--teacher-config", "math=teacher", "code=teacher"]
    routed = plan(*teachers, *configs, config=without_teacher)
    mean = plan(*teachers, "--teacher_mix", '{"math": 0.5, "code": 0.5}', *configs, config=without_teacher)
    assert component(mean, "hidden states") > component(routed, "hidden states")
    wrong = [*teachers, "--teacher_mix", '{"math": 0.5, "code": 0.4}']
    assert "the weights in teacher_mix sum to 0.9" in refuse("--config", without_teacher, *wrong, *configs)


def test_several_teachers_are_sized_each_by_its_own_config(plan, without_teacher):
    teachers = ["--teachers", f'{{"math": "teacher", "code": "{URL}", "law": "student"}}']
    figures = plan(*teachers, config=without_teacher)
    assert [teacher["served"] for teacher in figures["teachers"]] == [False, True, False]
    math, _, law = (teacher["parameters"] for teacher in figures["teachers"])
    assert figures["teacher_parameters"] == math + law
    assert f"teachers math {math:,}, code of unknown size behind HTTP, law {law:,};" in plan.text
    assert "--teacher-config code=DIR" in figures["notes"][0]
    assert "of the served teacher code" in figures["notes"][0]
    given = plan(*teachers, "--teacher-config", "code=teacher", "math=student", config=without_teacher)
    assert [teacher["parameters"] for teacher in given["teachers"]] == [law, math, law]
    assert component(given, "teacher's head, code") == 103 * 128 * 4


@pytest.mark.parametrize("given", ["teacher", "maths=teacher", "=teacher"])
def test_a_config_for_none_of_several_teachers_is_refused(given, refuse, configs, without_teacher):
    flags = ["--config", without_teacher, "--student-config", "student", "--teachers", '{"math": "a", "code": "b"}']
    message = refuse(*flags, "--teacher-config", given)
    assert f"--teacher-config {given} is for none of the recipe's teachers. Expected math=DIR code=DIR." in message


def test_a_missing_config_of_one_of_several_teachers_names_its_flag(refuse, configs, without_teacher):
    flags = ["--config", without_teacher, "--student-config", "student", "--teachers", '{"math": "nowhere"}']
    assert "Give --teacher-config math=DIR, a folder" in refuse(*flags)


def test_a_sharding_engine_refuses_an_offloaded_teacher_unless_all_are_served(plan, refuse, without_teacher):
    zero3 = ["--accelerate_config", "zero3", "--teacher_offload", "cpu", "--teachers"]
    plan(*zero3, f'{{"math": "{URL}", "code": "{URL}"}}', config=without_teacher)
    mixed = ["--config", without_teacher, "--student-config", "student", *zero3]
    assert "ZeRO-3 shards it" in refuse(*mixed, f'{{"math": "{URL}", "code": "teacher"}}')
