"""What the loss says of the sampled token besides its value: the log-ratio and the teacher's rank of it."""

import pytest
import torch

from opd_trl.losses import chunked_loss_from_log_probs, chunked_support_loss


# The teacher's probabilities of three tokens that were sampled at one and the same position; the student is uniform.
TEACHER = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
SAMPLED = torch.tensor([1, 0, 3])
SUPPORTS = ("student", "teacher", "intersection", "union", "full", "sampled")


def from_heads(**options):
    student, head = torch.zeros(3, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    teacher = TEACHER.log().expand(3, 4)
    return chunked_support_loss(student, head, teacher, head, torch.ones(3), top_k=2, **options)[1]


def from_log_probs(*, order=(0, 1), **options):
    ids = torch.tensor([order] * 3)
    log_probs = TEACHER.log()[ids]
    student, head = torch.zeros(3, 4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    return chunked_loss_from_log_probs(student, head, ids, log_probs, torch.ones(3), **options)[1]


@pytest.mark.parametrize("support", SUPPORTS)
def test_the_log_ratio_and_the_rank_are_those_worked_by_hand(support):
    stats = from_heads(support=support, completion_ids=SAMPLED)
    expected = torch.log(torch.tensor([0.3, 0.5, 0.05], dtype=torch.float64) / 0.25)
    torch.testing.assert_close(stats["sampled_log_ratio"], expected)
    assert stats["teacher_rank"].tolist() == [1.0, 0.0, 2.0]  # K = 2 is outside


def test_they_are_left_out_where_nobody_says_what_was_sampled():
    assert from_heads(support="teacher").keys() == {
        "per_token_divergence", "entropy", "student_mass", "teacher_mass", "overlap",
    }  # fmt: skip


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("support", ["teacher", "intersection"])
def test_a_served_teacher_that_was_not_asked_for_the_sampled_token_leaves_its_log_ratio_open(support, order):
    stats = from_log_probs(order=order, support=support, completion_ids=SAMPLED)
    assert stats["sampled_log_ratio"].isnan().tolist() == [False, False, True]
    assert stats["sampled_log_ratio"][0].item() == pytest.approx(torch.log(torch.tensor(0.3 / 0.25)).item())
    assert stats["teacher_rank"].tolist() == [1.0, 0.0, 2.0]


@pytest.mark.parametrize("support", ["teacher", "intersection", "sampled"])
def test_a_served_teacher_that_was_asked_gives_the_figures_of_its_head(support):
    sent = TEACHER.log()[SAMPLED]
    served = from_log_probs(support=support, completion_ids=SAMPLED, completion_log_probs=sent)
    whole = from_heads(support=support, completion_ids=SAMPLED)
    for name in ("sampled_log_ratio", "teacher_rank", "per_token_divergence", "teacher_mass"):
        torch.testing.assert_close(served[name], whole[name])


@pytest.mark.parametrize("support", SUPPORTS)
def test_they_change_neither_the_loss_nor_its_gradient(support):
    torch.manual_seed(0)
    student, head, teacher = torch.randn(5, 4), torch.randn(11, 4), torch.randn(5, 4)
    ids = torch.randint(11, (5,))
    results = []
    for given in ({}, {"completion_ids": ids}) if support != "sampled" else ({"completion_ids": ids},) * 2:
        hidden = student.clone().requires_grad_()
        loss, stats = chunked_support_loss(
            hidden, head, teacher, head, torch.ones(5), top_k=3, support=support, **given
        )
        loss.backward()
        assert not any(x.requires_grad for x in stats.values())
        results.append((loss.detach(), hidden.grad))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_an_empty_batch_has_empty_figures():
    hidden, head = torch.zeros(0, 4, requires_grad=True), torch.randn(11, 4)
    _, stats = chunked_support_loss(
        hidden, head, hidden.detach(), head, torch.zeros(0), top_k=3, completion_ids=torch.zeros(0, dtype=torch.int64)
    )
    assert stats["sampled_log_ratio"].shape == stats["teacher_rank"].shape == (0,)
