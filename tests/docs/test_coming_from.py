"""The pages for people from other trainers: TRL's tables against TRL, our names, and the claims about losses."""

import ast
import contextlib
import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml
from trl import DistillationConfig
from trl.experimental.async_distillation import AsyncDistillationConfig
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.experimental.gold import GOLDConfig, GOLDTrainer
from trl.experimental.gold.gold_trainer import ULDLoss
from trl.experimental.iw_opd import IWOPDConfig
from trl.experimental.sdft import SDFTConfig
from trl.experimental.sdft.loss_utils import compute_divergence, compute_topk_self_distillation_loss
from trl.experimental.sdpo import SDPOConfig
from trl.experimental.server_distillation import ServerDistillationConfig

from opd_trl import OPDConfig, OPSDConfig
from opd_trl.losses import (
    forward_kl,
    generalized_jsd,
    reverse_kl,
    sampled_token_loss,
    select_support,
    support_divergence,
)
from opd_trl.privileged import TEMPLATES
from opd_trl.scripts import opd, opsd
from opd_trl.scripts.launching import launch_arity
from opd_trl.trainers.config.config_checks import CHOICES
from opd_trl.trainers.config.opsd_config import TEACHER_KINDS

from .pages import FENCE, ROOT, joined, spans, split_line, tables


PAGES = sorted((ROOT / "docs" / "coming-from").glob("*.md"))
TEXTS = [page.read_text(encoding="utf-8") for page in PAGES]
TABLES = {head[0]: (head, rows) for page in PAGES for head, rows in tables(page)}
OURS_OF = {
    GKDConfig: OPDConfig,
    GOLDConfig: OPDConfig,
    DistillationConfig: OPDConfig,
    ServerDistillationConfig: OPDConfig,
    AsyncDistillationConfig: OPDConfig,
    IWOPDConfig: OPDConfig,
    SDFTConfig: OPSDConfig,
    SDPOConfig: OPSDConfig,
}
CHOICES_OF = {**CHOICES, "teacher_model_kind": TEACHER_KINDS, "privileged_builder": tuple(TEMPLATES)}
OURS = [
    span for head, rows in TABLES.values() if "ours" in head for row in rows for span in spans(row[head.index("ours")])
]


ON_A_CPU = ["--use_cpu", "true", "--bf16", "false", "--use_vllm", "false"]


def defaults(config: type) -> dict[str, object]:
    """The fields of a configuration and their defaults."""
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(config)
    }


def names_of_ours() -> set[str]:
    """Fields of our commands, TRL's among them, and flags of `accelerate launch`."""
    actions = [action for script in (opd, opsd) for action in script.make_parser()._actions]
    return {action.dest for action in actions} | set(launch_arity())


@pytest.mark.parametrize("theirs", OURS_OF, ids=lambda config: config.__name__)
def test_the_table_of_a_trainer_of_trl_names_its_fields_with_their_defaults(theirs):
    known = defaults(theirs)
    for row in TABLES[theirs.__name__][1]:
        names = spans(row[0])
        assert set(names) <= known.keys()
        if len(names) == 1 and row[1]:
            assert ast.literal_eval(row[1]) == known[names[0]], names[0]


@pytest.mark.parametrize("theirs", OURS_OF, ids=lambda config: config.__name__)
def test_the_table_of_a_trainer_of_trl_leaves_nothing_out(theirs):
    """Whatever we do not have under that name, or with another default."""
    ours = defaults(OURS_OF[theirs])
    due = {name for name, value in defaults(theirs).items() if name not in ours or ours[name] != value}
    listed = {name for row in TABLES[theirs.__name__][1] for name in spans(row[0])}
    assert due <= listed


def test_the_names_on_our_side_exist():
    assert len(OURS) > 60
    assert {span.partition(":")[0] for span in OURS} <= names_of_ours()


def test_the_values_on_our_side_are_choices():
    given = [
        (name, value) for span in OURS for name, value in yaml.safe_load(f"{{{span}}}").items() if value is not None
    ]
    assert all(value in CHOICES_OF[name] for name, value in given if name in CHOICES_OF)
    assert len(given) > 40


def recipes() -> list[tuple[str, str]]:
    """The recipes of the pages, and the command that each is for."""
    found = []
    for text in TEXTS:
        for match in FENCE.finditer(text):
            command = re.search(r"opd-trl (opd|opsd) --config my_recipe", text[match.end() :])
            if match["language"] == "yaml" and command:
                found.append((match["code"], command[1]))
    return found


@pytest.mark.parametrize("index", range(2))
def test_a_recipe_of_a_page_is_read_strictly(index, tmp_path):
    code, command = recipes()[index]
    path = tmp_path / "my_recipe.yaml"
    path.write_text(code, encoding="utf-8")
    parser = {"opd": opd, "opsd": opsd}[command].make_parser()
    with contextlib.chdir(tmp_path):
        _, training_args, *_ = parser.parse_args_and_config(["--config", str(path), *ON_A_CPU])
    assert Path(training_args.output_dir).parts[-2:-1] == ("runs",)


def calls_with_flags_alone() -> list[list[str]]:
    """The training commands of the pages that need no recipe: their flags, without those of `accelerate launch`."""
    blocks = [match["code"] for text in TEXTS for match in FENCE.finditer(text) if match["language"] == "bash"]
    found = []
    for command, *words in (call for block in blocks for line in joined(block) for call in split_line(line)):
        if command in ("opd", "opsd") and "--config" not in words:
            pairs = zip(words[::2], words[1::2], strict=True)
            ours = [pair for pair in pairs if pair[0].removeprefix("--") not in {"accelerate_config", "num_processes"}]
            found.append([command, *(word for pair in ours for word in pair)])
    return found


@pytest.mark.parametrize("call", calls_with_flags_alone(), ids=" ".join)
def test_a_command_of_a_page_makes_a_configuration(call):
    command, *words = call
    parser = {"opd": opd, "opsd": opsd}[command].make_parser()
    _, training_args, *_ = parser.parse_args_and_config([*words, *ON_A_CPU])
    assert Path(training_args.output_dir).parts == ("runs", "opd")


# What the notes say about losses


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(6, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_beta_and_alpha_of_trl_count_in_our_direction(logits, share):
    student, teacher = (x.log_softmax(-1) for x in logits)
    ours = generalized_jsd(student, teacher, beta=share)
    torch.testing.assert_close(ours, compute_divergence(student, teacher, share))
    gkd = GKDTrainer.generalized_jsd_loss(*logits, beta=share, reduction="sum")
    torch.testing.assert_close(ours.sum(), gkd)
    gold = GOLDTrainer.generalized_jsd_loss(*logits, beta=share, reduction="sum")
    torch.testing.assert_close(ours.sum(), gold)


def test_the_sorted_loss_of_gold_does_not_see_which_token_is_which(logits):
    student = logits[0].detach()[None]
    ids = torch.arange(student.shape[1])[None]
    loss = ULDLoss(GOLDConfig(use_uld_loss=True, use_extended_uld=False, use_cpu=True, bf16=False))
    same_but_permuted = loss(
        student_logits=student,
        teacher_logits=student.flip(-1),
        student_labels=ids,
        teacher_labels=ids,
        student_input_ids=ids,
        teacher_input_ids=ids,
    )
    torch.testing.assert_close(same_but_permuted, torch.zeros_like(same_but_permuted))


@pytest.mark.parametrize(("add_tail", "tail"), [(False, "renormalize"), (True, "bucket")])
def test_the_top_k_of_sdft_and_sdpo_is_ours(logits, add_tail, tail):
    student, teacher = (x.log_softmax(-1) for x in logits)
    ids, _ = select_support(student, teacher, top_k=4)
    ours = support_divergence(student.gather(-1, ids), teacher.gather(-1, ids), divergence="jsd", beta=0.5, tail=tail)
    theirs = compute_topk_self_distillation_loss(
        *logits, distillation_topk=4, distillation_alpha=0.5, distillation_add_tail=add_tail
    )
    torch.testing.assert_close(ours, theirs)


def test_the_top_k_of_ms_swift_is_renormalised_on_the_teachers_ids(logits):
    student, teacher = (x.log_softmax(-1) for x in logits)
    ids, _ = select_support(student, teacher, top_k=4, support="teacher")
    ours = support_divergence(
        student.gather(-1, ids), teacher.gather(-1, ids), divergence="forward_kl", tail="renormalize"
    )
    theirs = forward_kl(*(x.gather(-1, ids).log_softmax(-1) for x in logits))
    torch.testing.assert_close(ours, theirs)


def test_backpropagating_k2_of_verl_is_the_sampled_token_loss(logits):
    student, teacher = (x.log_softmax(-1) for x in logits)
    k2 = 0.5 * (student - teacher).square()  # of every token, as if it were the sampled one
    ours = torch.autograd.grad(sampled_token_loss(student, teacher).sum(), logits[0], retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(k2.sum(), logits[0])[0], ours)


def test_backpropagating_k3_of_verl_is_in_expectation_the_forward_kl(logits):
    student, teacher = (x.log_softmax(-1) for x in logits)
    k3 = (teacher - student).exp() - (teacher - student) - 1
    expected = (student.detach().exp() * k3).sum(-1)  # over the tokens that the student may sample
    ours = torch.autograd.grad(forward_kl(student, teacher).sum(), logits[0], retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(expected.sum(), logits[0])[0], ours)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_mixed_top_k_of_nemo_rl_is_ours(logits, weight):
    student, teacher = (x.log_softmax(-1) for x in logits)
    ids, _ = select_support(student, teacher, top_k=4, support="teacher")
    ours = support_divergence(
        student.gather(-1, ids), teacher.gather(-1, ids), divergence="mixed", beta=1 - weight, tail="renormalize"
    )
    on_top_k = [x.gather(-1, ids).log_softmax(-1) for x in logits]
    theirs = weight * forward_kl(*on_top_k) + (1 - weight) * reverse_kl(*on_top_k)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(x.sum(), logits[0], retain_graph=True)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_a_top_k_value_as_the_advantage_of_the_sampled_token_has_no_gradient_on_average(logits):
    student, teacher = (x.log_softmax(-1) for x in logits)
    ids, _ = select_support(student, teacher, top_k=4)
    ratio = (student - teacher).gather(-1, ids)
    advantage = -(student.gather(-1, ids).softmax(-1) * ratio).sum(-1, keepdim=True).detach()
    of_every_token = student.detach().exp() * advantage * student  # chance of being sampled, advantage, score
    gradient = torch.autograd.grad(of_every_token.sum(), logits[0])[0]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))
