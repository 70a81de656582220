"""The moments of a step as `opd-trl plan` sizes them, against every byte that torch allocates in one."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from opd_trl import OPDConfig
from opd_trl.models.forward import read_head
from opd_trl.planning.component import BACKWARD, LOSS, MOMENTS, TEACHER, bytes_at
from opd_trl.planning.model_size import measure
from opd_trl.planning.sizing import estimate
from opd_trl.planning.workload import Teacher, Workload, engines
from opd_trl.teachers.scores import HiddenStates
from opd_trl.trainers.passes import build_objective, student_pass, teacher_pass
from tests.memory import PeakBytes


ROWS, PROMPT, COMPLETION, VOCABULARY = 2, 64, 192, 4096


def build(dtype: torch.dtype, **sizes) -> torch.nn.Module:
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}
    config = Qwen3Config(vocab_size=VOCABULARY, tie_word_embeddings=True, **heads, **sizes)
    return AutoModelForCausalLM.from_config(config).to(dtype)


def measured(student, teacher, work: Workload) -> dict[str, int]:
    """Peak bytes of the teacher's forward, and of the student's with its loss and backward, gradients being there."""
    prompt = torch.ones(ROWS, PROMPT, dtype=torch.long)
    mask = prompt.clone()
    mask[0, :5] = 0
    completion = torch.randint(VOCABULARY, (ROWS, COMPLETION))
    kept = torch.ones_like(completion)
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "loss_mask")
    inputs = dict(zip(names, (prompt, mask, completion, kept, kept), strict=True))
    recipe = {"loss_top_k": 20, "loss_support": "student", "divergence": "reverse_kl", "divergence_beta": 0.5}
    recipe |= {"loss_tail": "renormalize", "stop_gradient": True, "loss_temperature": None}
    args = OPDConfig(output_dir="out", use_cpu=True, loss_memory_mib=work.loss_memory_mib, **recipe)
    objective = build_objective(args, 1.0, VOCABULARY, torch.device("cpu"))
    weights = [x for model in (student, teacher) for x in (*model.parameters(), *model.buffers())]
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    known = [*weights, *inputs.values(), *(parameter.grad for parameter in student.parameters())]

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=work.mixed_precision)
    with PeakBytes(*known) as scoring, torch.no_grad(), autocast:
        hidden_states = teacher_pass(teacher, inputs)
    with PeakBytes(*known) as training:
        training.count(hidden_states.untyped_storage())
        with autocast:
            tokens = {"num_rows": VOCABULARY, "num_loss_tokens": torch.tensor(float(kept.sum()))}
            off = {"router_loss": False, "policy_temperature": None}
            scores = {"": HiddenStates(None, hidden_states, read_head(teacher))}
            loss = student_pass(student, inputs, scores, objective=objective, **tokens, **off).loss
        loss.backward()
    return {"teacher": scoring.peak, "student": training.peak}


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(
    ("dtype", "mixed_precision"), [(torch.float32, True), (torch.bfloat16, False), (torch.float32, False)]
)
def test_the_moments_of_a_step_are_sized_within_a_sixth_of_what_torch_allocates(dtype, mixed_precision, checkpointing):
    torch.manual_seed(0)
    student = build(dtype, hidden_size=256, num_hidden_layers=6, intermediate_size=768).train()
    teacher_dtype = torch.bfloat16 if mixed_precision else dtype
    teacher = build(teacher_dtype, hidden_size=512, num_hidden_layers=2, intermediate_size=1536)
    teacher.eval().requires_grad_(False)
    if checkpointing:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    work = Workload(
        student=measure(student, dtype=dtype),
        teachers=(Teacher("", measure(teacher, dtype=teacher_dtype)),),
        teacher_kind="model",
        loss_support="student",
        loss_top_k=20,
        use_peft=False,
        adapter_parameters=None,
        mixed_precision=mixed_precision,
        eight_bit_optimizer=False,
        reference_model=False,
        teacher_offload=False,
        teacher_batch_size=None,
        batch_size=ROWS,
        generation_batch_size=ROWS,
        prompt_length=PROMPT,
        teacher_prompt_length=PROMPT,
        completion_length=COMPLETION,
        gradient_checkpointing=checkpointing,
        attention="sdpa",
        loss_memory_mib=4,
        generation="server",
        vllm_share=0.0,
        vllm_sleeps=False,
        gather_for_generation=False,
        gpu_memory=2**34,
        device="cpu",
    )
    parts = [part for part in estimate(work, engines(1)[0]) if part.moments != MOMENTS]
    sized = {
        "teacher": bytes_at(parts, TEACHER),
        "student": max(bytes_at(parts, LOSS), bytes_at(parts, BACKWARD)),
    }
    for model, peak in measured(student, teacher, work).items():
        assert 0.97 * peak <= sized[model] <= 7 / 6 * peak, model
