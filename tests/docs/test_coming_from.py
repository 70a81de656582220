"""The page for people from other trainers: TRL's tables against TRL, our names, and the claims about losses."""

import ast
import contextlib
import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml
from trl import DistillationConfig
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.experimental.sdft import SDFTConfig
from trl.experimental.sdft.loss_utils import compute_divergence, compute_topk_self_distillation_loss
from trl.experimental.sdpo import SDPOConfig
from trl.experimental.server_distillation import ServerDistillationConfig

from opd_trl import OPDConfig, OPSDConfig
from opd_trl.losses import forward_kl, generalized_jsd, sampled_token_loss, select_support, support_divergence
from opd_trl.privileged import TEMPLATES
from opd_trl.scripts import opd, opsd
from opd_trl.scripts.launching import launch_arity
from opd_trl.trainers.config_checks import CHOICES
from opd_trl.trainers.opsd_config import TEACHER_KINDS

from .pages import FENCE, ROOT, spans, tables


PAGE = ROOT / "docs" / "coming-from.md"
TABLES = {head[0]: (head, rows) for head, rows in tables(PAGE)}
OURS_OF = {
    GKDConfig: OPDConfig,
    DistillationConfig: OPDConfig,
    ServerDistillationConfig: OPDConfig,
    SDFTConfig: OPSDConfig,
    SDPOConfig: OPSDConfig,
}
CHOICES_OF = {**CHOICES, "teacher_model_kind": TEACHER_KINDS, "privileged_builder": tuple(TEMPLATES)}
OURS = [
    span for head, rows in TABLES.values() if "ours" in head for row in rows for span in spans(row[head.index("ours")])
]


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
    """The recipes of the pages for starters, and the command that each is for."""
    found = []
    for page in (PAGE, ROOT / "docs" / "getting-started.md"):
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            command = re.search(r"opd-trl (opd|opsd) --config my_recipe", text[match.end() :])
            if match["language"] == "yaml" and command:
                found.append((match["code"], command[1]))
    return found


@pytest.mark.parametrize("index", range(3))
def test_a_recipe_of_the_page_is_read_strictly(index, tmp_path):
    code, command = recipes()[index]
    path = tmp_path / "my_recipe.yaml"
    path.write_text(code, encoding="utf-8")
    parser = {"opd": opd, "opsd": opsd}[command].make_parser()
    flags = ["--use_cpu", "true", "--bf16", "false", "--use_vllm", "false"]
    with contextlib.chdir(tmp_path):
        _, training_args, *_ = parser.parse_args_and_config(["--config", str(path), *flags])
    assert Path(training_args.output_dir).parts[-2:-1] == ("runs",)


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
