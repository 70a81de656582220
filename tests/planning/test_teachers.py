"""What teachers take: in this job, behind HTTP, several at once."""

from dataclasses import replace

import pytest

from opd_trl.planning.component import MAX_LIVE_PARAMETERS, MOMENTS, TEACHER
from opd_trl.planning.sizing import estimate
from opd_trl.planning.workload import Teacher, Workload, engines
from opd_trl.teachers.several import routing
from tests.planning.sized import FSDP2, SINGLE, ZERO2, ZERO3, by_name
from tests.trainers.build import opd_trainer


HEAD = 151936 * 4096 * 2  # of Qwen3-8B in bfloat16
AHEAD = 8 * 4096 * 4096 * 2  # hidden states of 8 completions of 4096 tokens


@pytest.fixture(scope="module")
def served(work, teacher) -> Workload:
    """The teacher behind `opd-trl serve-teacher`."""
    return replace(work, teachers=(Teacher("", teacher, served=True),))


@pytest.fixture(scope="module")
def several(work, student, teacher) -> Workload:
    """Qwen3-8B for mathematics and Qwen3-1.7B for code, both here and in bfloat16."""
    return replace(work, teachers=(Teacher("math", teacher), Teacher("code", replace(student, width=2))))


def test_an_offloaded_teacher_leaves_its_head_and_comes_for_its_forward(work, teacher):
    offloaded = replace(work, teacher_offload=True)
    parts = {part.name: part for part in estimate(offloaded, ZERO2)}
    head = 2 * 151936 * 4096
    assert (parts["teacher's head"].bytes, parts["teacher's head"].moments) == (head, MOMENTS)
    assert parts["teacher's body"].bytes == 2 * teacher.parameters - head
    assert parts["teacher's body"].moments == (TEACHER,)
    assert "teacher weights" not in parts
    assert "teacher's head" not in by_name(offloaded, ZERO3)  # training refuses it


def test_a_teacher_that_scores_ahead_leaves_the_hidden_states_of_a_generation_batch(work):
    assert "scored ahead" not in by_name(work, ZERO2)
    ahead = by_name(replace(work, teacher_batch_size=8), ZERO2)
    assert ahead["scored ahead"] == 8 * 4096 * 4096 * 2
    assert ahead["teacher's forward"] == 4 * by_name(work, ZERO2)["teacher's forward"]


def test_fsdp2_gathers_a_layer_with_the_head_and_zero3_up_to_its_limit(work, student, teacher):
    layer = by_name(work, ZERO2)["teacher's forward"]
    assert by_name(work, FSDP2)["teacher's forward"] - layer == 2 * (teacher.layer_parameters + 151936 * 4096)
    assert by_name(work, ZERO3)["teacher's forward"] - layer == 2 * MAX_LIVE_PARAMETERS
    own = replace(work, teachers=(), teacher_kind="base", use_peft=True)
    gathered = by_name(own, FSDP2)["teacher's forward"] - by_name(own, ZERO2)["teacher's forward"]
    assert gathered == 2 * (student.layer_parameters + 151936 * 2048)
    deep = replace(work, teachers=(Teacher("", replace(teacher, layer_parameters=10**9)),))
    assert by_name(deep, FSDP2)["teacher's forward"] - layer == 2 * 2 * 10**9


def test_a_longer_teacher_prompt_costs_the_teacher_alone(work):
    longer = by_name(replace(work, teacher_prompt_length=4096), ZERO2)
    parts = by_name(work, ZERO2)
    assert {name for name in parts if longer[name] != parts[name]} == {
        "teacher's forward",
        "shared context",
        "shared context, rows",
    }


def test_a_shared_context_is_kept_once_and_repeated_for_the_rows_of_a_forward(work, teacher):
    """A text of 4,096 tokens: keys and values of each layer, in bfloat16; sharded engines keep none."""
    parts = by_name(replace(work, teacher_prompt_length=4096), ZERO2)
    per_token = 2 * teacher.num_layers * teacher.num_kv_heads * teacher.head_dim * 2
    assert parts["shared context"] == 4096 * per_token
    assert parts["shared context, rows"] == work.batch_size * (4096 + work.completion_length) * per_token
    assert not {"shared context", "shared context, rows"} & by_name(work, ZERO3).keys()


@pytest.mark.parametrize("kind", ["base", "live", "ema"])
def test_a_lora_student_needs_no_second_model_and_an_ema_one_adapter(work, student, kind):
    alone = replace(work, teachers=(), teacher_kind=kind, use_peft=True, reference_model=True)
    parts = by_name(alone, SINGLE)
    adapters = 2 if kind == "ema" else 1
    assert parts["student weights"] == 4 * student.parameters + adapters * 4 * work.adapter_parameters
    assert not {"teacher weights", "reference model"} & parts.keys()


@pytest.mark.parametrize(("kind", "copies"), [("base", 1), ("ema", 1), ("live", 0)])
def test_a_self_teacher_of_full_fine_tuning_is_a_copy_unless_it_is_live(work, student, kind, copies):
    parts = by_name(replace(work, teachers=(), teacher_kind=kind), SINGLE)
    assert parts.get("teacher weights", 0) == copies * 4 * student.parameters


def test_a_quantized_teacher_takes_its_bits_here_and_its_head_none_of_them(work, teacher):
    quantized = replace(work, teachers=(Teacher("", replace(teacher, linear_bits=4.5)),))
    rest = teacher.parameters - teacher.linear_parameters
    weights = teacher.linear_parameters * 4.5 / 8 + rest * 2
    assert by_name(quantized, SINGLE)["teacher weights"] == weights
    offloaded = by_name(replace(quantized, teacher_offload=True), SINGLE)
    assert (offloaded["teacher's head"], offloaded["teacher's body"]) == (HEAD, weights - HEAD)


# Behind HTTP


@pytest.mark.parametrize("engine", engines(8), ids=lambda engine: engine.name)
def test_a_served_teacher_leaves_its_head_and_the_hidden_states_of_a_generation_batch_on_each_gpu(served, engine):
    parts = {part.name: part for part in estimate(served, engine)}
    assert (parts["teacher's head"].bytes, parts["teacher's head"].moments) == (HEAD, MOMENTS)
    assert parts["scored ahead"].bytes == AHEAD
    assert not {"teacher weights", "teacher's forward", "teacher's body"} & parts.keys()


def test_the_loss_reads_a_served_teacher_as_one_that_is_here(work, served):
    for name in ("hidden states", "loss chunk", "LM head gradient"):
        assert by_name(served, ZERO2)[name] == by_name(work, ZERO2)[name]
    for engine in (ZERO3, FSDP2):  # a served head is not sharded, so it is not gathered
        assert by_name(served, engine)["LM heads"] == 151936 * 2048 * 2


def test_a_served_teacher_sends_the_dtype_of_its_model(served, teacher):
    wide = replace(served, teachers=(Teacher("", replace(teacher, width=4), served=True),))
    assert by_name(wide, SINGLE)["teacher's head"] == 2 * HEAD
    assert by_name(wide, SINGLE)["scored ahead"] == 2 * AHEAD
    assert by_name(wide, SINGLE)["LM heads"] - by_name(served, SINGLE)["LM heads"] == HEAD  # cast to 16 bits


def test_a_served_teacher_of_unknown_size_leaves_its_top_k_where_the_loss_can_do_with_it(work):
    unknown = replace(work, teachers=(Teacher("", None, served=True),))
    for support in ("teacher", "intersection", "sampled"):
        parts = by_name(replace(unknown, loss_support=support), ZERO2)
        assert parts["TopK scored ahead"] == 8 * 4096 * 20 * (8 + 4)
        assert parts["hidden states"] == 2 * 4096 * 3 * 2048 * 2
        assert not {"teacher's head", "scored ahead", "teacher weights", "teacher's forward"} & parts.keys()
    for support in ("student", "union", "full"):
        assert "TopK scored ahead" not in by_name(replace(unknown, loss_support=support), ZERO2)


def test_the_scores_of_two_generation_batches_are_there_while_the_second_is_scored(served):
    parts = {part.name: part for part in estimate(served, ZERO2)}
    assert parts["scored ahead"].moments == MOMENTS
    assert (parts["scored ahead, next"].bytes, parts["scored ahead, next"].moments) == (AHEAD, (TEACHER,))


def test_trl_keeps_the_last_generation_batch_until_the_next_is_scored(
    tmp_path, student_path, teacher_path, monkeypatch
):
    seen, score_ahead = [], routing.score_ahead

    def spy(trainer, teachers, batch):
        seen.append([key for part in trainer._buffered_inputs or [] for key in part if key == "teacher_hidden_states"])
        return score_ahead(trainer, teachers, batch)

    monkeypatch.setattr(routing, "score_ahead", spy)
    opd_trainer(tmp_path, student_path, teacher_path, max_steps=2, teacher_batch_size=2).train()
    assert seen == [[], ["teacher_hidden_states"]]


# Several


def test_several_teachers_are_all_here_and_the_largest_forward_counts(several, work, student, teacher):
    parts = by_name(several, SINGLE)
    assert parts["teacher weights, math"] == 2 * teacher.parameters
    assert parts["teacher weights, code"] == 2 * student.parameters
    assert parts["teacher's forward"] == by_name(work, SINGLE)["teacher's forward"]
    turned = replace(several, teachers=several.teachers[::-1])
    assert by_name(turned, SINGLE)["teacher's forward"] == parts["teacher's forward"]
    assert parts["hidden states"] == by_name(work, SINGLE)["hidden states"]
    assert by_name(several, ZERO3)["teacher weights, code"] == 2 * student.parameters / 8


def test_offloaded_teachers_leave_their_heads_and_come_one_at_a_time(several, teacher):
    parts = by_name(replace(several, teacher_offload=True), SINGLE)
    assert (parts["teacher's head, math"], parts["teacher's head, code"]) == (HEAD, HEAD / 2)
    assert parts["teacher's body, math"] == 2 * teacher.parameters - HEAD
    assert "teacher's body, code" not in parts
    assert parts["scored ahead"] == AHEAD


def test_zero3_gathers_the_heads_of_several_teachers_at_once_and_fsdp2_one_by_one(several):
    assert by_name(several, ZERO3)["LM heads"] == 151936 * (2048 + 4096 + 2048) * 2
    assert by_name(several, FSDP2)["LM heads"] == 151936 * (2048 + 4096) * 2


def test_each_teacher_of_a_micro_batch_has_a_gradient_of_the_head(several):
    shape = 151936 * 2048
    assert by_name(several, ZERO2)["LM head gradient"] == shape * (4 + 2)
    one_row = replace(several, batch_size=1)
    assert by_name(one_row, ZERO2)["LM head gradient"] == shape * 4
    assert by_name(one_row, ZERO3)["LM head gradient"] == shape * (4 + 2)  # each rank runs all teachers


def test_in_a_mean_all_teachers_count_at_once_and_there_is_one_gradient(several, work):
    mean = replace(several, mixes=True)
    parts, routed, one = (by_name(x, SINGLE) for x in (mean, several, work))
    assert parts["hidden states"] - routed["hidden states"] == 4096 * 2 * 2 * 2048 * mean.batch_size
    assert parts["shared context"] > routed["shared context"]
    assert parts["shared context, rows"] == routed["shared context, rows"]
    assert by_name(mean, ZERO2)["LM head gradient"] == 151936 * 2048 * 4
    assert by_name(mean, ZERO3)["LM head gradient"] == 151936 * 2048 * 4
    assert by_name(mean, FSDP2)["LM heads"] == 151936 * (2048 + 4096 + 2048) * 2
    assert by_name(replace(mean, teacher_batch_size=2), SINGLE)["scored ahead"] == AHEAD * 3 / 2
    # Three chunks of logits in place of two, each two thirds as long: the same budget.
    assert parts["loss chunk"] == pytest.approx(one["loss chunk"], rel=0.15)
    few = replace(mean, completion_length=8, prompt_length=8)
    more = by_name(few, SINGLE)["loss chunk"] - by_name(replace(few, mixes=False), SINGLE)["loss chunk"]
    assert more == 8 * few.batch_size * 151936 * 4


def test_what_is_scored_ahead_is_as_wide_as_the_widest_of_those_that_score_ahead(several, student, teacher):
    math, code = several.teachers
    mixed = replace(several, teachers=(math, replace(code, served=True)))
    assert by_name(mixed, SINGLE)["scored ahead"] == AHEAD / 2
    assert by_name(mixed, SINGLE)["teacher's head, code"] == HEAD / 2
    assert by_name(replace(mixed, teacher_batch_size=2), SINGLE)["scored ahead"] == AHEAD
    wide = replace(mixed, teachers=(math, Teacher("code", student, served=True)), teacher_batch_size=2)
    assert by_name(wide, SINGLE)["scored ahead"] == 2 * AHEAD  # float32 of the one, the width of the other
