"""The privileged-context test on planted distributions: what is shared, what differs, what does nothing."""

import dataclasses
import math

import pytest
import torch

from opd_trl.losses.head import Head
from opd_trl.losses.next_token import NextToken
from opd_trl.losses.spread import context_spread
from opd_trl.preflight.clustered import Estimate, mean_of, ratio
from opd_trl.preflight.context_figures import ContextTokens, context_figures, findings_of, judge, judge_rows


V, TOKENS = 12, 8


def columns_of(prompts, contexts):
    others = [torch.randperm(prompts - 1)[: contexts - 1] for _ in range(prompts)]
    return torch.stack([torch.cat([torch.tensor([k]), (k + 1 + r) % prompts]) for k, r in enumerate(others)])


def planted(*, shared=0.0, own=0.0, prompts=24, contexts=4, seed=0, divergence="reverse_kl"):
    """Teachers that move the student's logits by a direction that all contexts share and one that each has alone."""
    torch.manual_seed(seed)
    columns = columns_of(prompts, contexts)
    rule, effects = shared * torch.randn(V), own * torch.randn(prompts, V)
    logits = torch.randn(prompts, TOKENS, V)

    def head_of(values):
        return NextToken(values.reshape(-1, V), Head(torch.eye(V)))

    student = head_of(logits)
    teachers = [head_of(logits + rule + effects[columns[:, c]][:, None]) for c in range(contexts)]
    spread = context_spread(student, teachers, divergence=divergence)
    moved = context_spread(student, teachers[:1], divergence=divergence).per_context[:, 0]
    return ContextTokens(
        per_context=spread.per_context,
        irreducible=spread.irreducible,
        irreducible_without=spread.irreducible_without,
        empty=torch.zeros_like(moved),
        alone=None,
        moved=moved,
        quarter=(4 * torch.arange(TOKENS) // TOKENS).repeat(prompts),
        prompt=torch.arange(prompts).repeat_interleave(TOKENS),
        contexts=columns,
    )


def figures_of(tokens, **options):
    return context_figures(tokens, **{"divergence": "reverse_kl", "context_length": 50.0} | options)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "mixed"])
def test_a_rule_in_many_words_can_be_internalised(divergence):
    figures = figures_of(planted(shared=1.0, own=0.1, divergence=divergence))
    word, sentence = judge(figures)
    assert word == "ok"
    assert sentence.startswith("Shared rule: can be internalised. Only ")
    assert figures.share.value < 0.05
    assert figures.own.value == pytest.approx(figures.other.value, rel=0.2)


@pytest.mark.parametrize(("shared", "own", "word"), [(0.0, 1.0, "stop"), (1.0, 0.9, "fix")])
def test_what_differs_per_instance_cannot_be_learned(shared, own, word):
    figures = figures_of(planted(shared=shared, own=own))
    found, sentence = judge(figures)
    assert found == word
    assert sentence.startswith(f"Differs per instance: {figures.share.value:.0%} of the signal")
    assert sentence.endswith("cannot be learned by a student that does not see the context.")
    (finding,) = findings_of(figures)
    assert "more contexts" not in finding.change
    assert "several contexts per prompt do not help" in finding.change
    assert "2605.11182" in finding.threshold


def test_answers_that_hardly_move_the_teacher_are_no_shared_rule():
    rule = figures_of(planted(shared=1.0, own=0.1))
    assert judge(dataclasses.replace(rule, prompt_gain=Estimate(0.1, 0.06)))[0] == "ok"
    for gain in ("prompt_gain", "answer_gain"):
        word, sentence = judge(dataclasses.replace(rule, **{gain: Estimate(0.5, 0.06)}))
        assert word == "fix"
        assert sentence.startswith("Differs per instance: 0% of the signal")
        assert "the wording around them" in sentence


def test_independent_contexts_leave_what_the_limit_leaves():
    # To second order each divergence is half the variance under p of the effect, and independent effects have no mean.
    small = figures_of(planted(own=0.05, prompts=200))
    assert small.share.value == pytest.approx(1.0, abs=0.03)
    assert small.share.low < 1 < small.share.high + 0.03
    assert small.learnable.value == pytest.approx(small.total.value - small.irreducible.value)
    plug_in = planted(own=0.05, prompts=200)
    assert (plug_in.irreducible.sum() / plug_in.per_context.mean(-1).sum()).item() == pytest.approx(0.75, abs=0.03)


def test_a_context_that_does_nothing_stops_whatever_else_is_found():
    tokens = planted(shared=0.0, own=1.0)
    figures = figures_of(dataclasses.replace(tokens, moved=torch.full_like(tokens.moved, 1e-5)))
    word, sentence = judge(figures)
    assert word == "stop"
    assert sentence.startswith("The context does not change the teacher")
    finding = findings_of(figures)[0]
    assert (finding.verdict, finding.value) == ("stop", pytest.approx(1e-5))
    assert "privileged_context" in finding.change


def test_one_context_for_all_rows_is_a_shared_rule():
    tokens = planted(shared=1.0, contexts=1)
    figures = figures_of(tokens)
    assert figures.is_shared
    assert figures.other is None
    assert (figures.share, figures.irreducible.value) == (Estimate(0.0, 0.0), 0.0)
    assert figures.sampling_error is None
    assert judge(figures) == (
        "ok",
        "Shared rule: can be internalised. All rows have the same context, so their teachers agree.",
    )
    assert judge_rows(figures) is None
    assert len(findings_of(figures)) == 1


def test_the_own_context_stands_in_the_first_column():
    tokens = planted(shared=0.2, own=0.5)
    figures = figures_of(tokens)
    assert figures.own.value == pytest.approx(tokens.per_context[:, 0].mean().item())
    assert figures.other.value == pytest.approx(tokens.per_context[:, 1:].mean().item())


def test_quarters_are_those_of_the_completions():
    tokens = planted(shared=0.2, own=0.5)
    early = tokens.quarter == 0
    louder = dataclasses.replace(
        tokens, per_context=torch.where(early[:, None], 2 * tokens.per_context, tokens.per_context)
    )
    plain, loud = figures_of(tokens).quarters, figures_of(louder).quarters
    assert sum(x.irreducible for x in plain) / 4 == pytest.approx(figures_of(tokens).irreducible.value)
    assert loud[0].total == pytest.approx(2 * plain[0].total)
    assert loud[0].share == pytest.approx(plain[0].share / 2)
    assert loud[1:] == plain[1:]
    short = dataclasses.replace(tokens, quarter=torch.zeros_like(tokens.quarter))
    assert len(set(figures_of(short).quarters)) == 1


@pytest.mark.parametrize(
    ("gains", "length", "word", "says"),
    [
        ({"prompt_gain": Estimate(0.5, 0.06)}, 60, "ok", "belong to their rows, each"),
        ({"prompt_gain": Estimate(0.05, 0.06)}, 60, "fix", "Is the column shuffled?"),
        ({"prompt_gain": Estimate(-0.5, 0.06)}, 60, "fix", "question -0.500 ± 0.060"),
        ({"prompt_gain": Estimate(0.01, 0.06), "answer_gain": Estimate(1.3, 0.2)}, 3, "ok", "answer +1.300"),
        ({"prompt_gain": Estimate(0.01, 0.06), "answer_gain": Estimate(0.1, 0.2)}, 3, "fix", "do not belong"),
        ({"prompt_gain": Estimate(0.01, 0.06)}, 3, "ok", "too short to see"),
        ({"answer_gain": Estimate(0.1, 0.2)}, 60, "fix", "do not belong"),
    ],
)
def test_contexts_that_tell_no_more_of_their_own_row_are_asked_about(gains, length, word, says):
    figures = dataclasses.replace(figures_of(planted(own=1.0), context_length=length), **gains)
    found, sentence = judge_rows(figures)
    assert found == word
    assert says in sentence
    _, finding = findings_of(figures)
    assert (finding.verdict, bool(finding.change)) == (word, word == "fix")


def test_gains_become_a_mean_with_its_standard_error():
    figures = figures_of(planted(own=1.0), prompt_gains=torch.tensor([1.0, 2.0, 3.0]), answer_gains=torch.tensor([]))
    assert figures.prompt_gain == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert figures.answer_gain is None
    assert mean_of(torch.tensor([1.0])) is None
    assert judge_rows(dataclasses.replace(figures, prompt_gain=None)) is None


def test_one_prompt_says_nothing_of_the_next():
    tokens = planted(own=1.0)
    first = tokens.prompt == 0
    per_token = {
        field.name: value[first]
        for field in dataclasses.fields(ContextTokens)
        if field.name != "contexts" and (value := getattr(tokens, field.name)) is not None
    }
    with pytest.raises(ValueError, match="tokens of at least 2 prompts"):
        figures_of(ContextTokens(**per_token, alone=None, contexts=tokens.contexts))


def test_means_are_over_tokens_and_their_errors_over_prompts():
    values = torch.tensor([[4.0], [2.0], [0.0]], dtype=torch.float64)
    counts = torch.tensor([[2.0], [1.0], [0.0]], dtype=torch.float64)  # the third has no token
    estimate, drawn = ratio(values, counts)
    assert (estimate, drawn) == ((2.0, 0.0), None)
    spread, _ = ratio(torch.tensor([[1.0], [3.0]]).double(), torch.ones(2, 1).double())
    assert spread == (2.0, pytest.approx(1.0))  # sd sqrt(2) / sqrt(2)
    assert ratio(torch.tensor([[1.0], [3.0], [0.0]]), torch.tensor([[1.0], [1.0], [0.0]]))[0] == spread
    assert ratio(torch.zeros(2, 1), torch.zeros(2, 1)) == ((0.0, 0.0), None)


@pytest.mark.parametrize("effect", [0.0, 0.5])
def test_the_interval_holds_the_truth_as_often_as_it_says_though_prompts_share_contexts(effect):
    torch.manual_seed(0)
    inside, ignoring, draws, found = 0, 0, 300, []
    for _ in range(draws):
        columns = columns_of(32, 4)
        noise = 0.2 * torch.randn(32, 1) + 0.2 * torch.randn(32, 4) + effect * torch.randn(32)[columns]
        weights = (1 + 0.3 * torch.randn(32, 1).clamp(-2, 2)).double().expand(32, 4)
        top = (0.4 + noise).double()
        both, by_prompt = ratio(top, weights, columns)[0], ratio(top, weights)[0]
        inside += both.low <= 0.4 <= both.high
        ignoring += by_prompt.low <= 0.4 <= by_prompt.high
        found.append(both)
    assert 0.89 <= inside / draws <= 0.99
    assert (ignoring / draws < 0.8) == (effect > 0)
    values, errors = torch.tensor(found).T
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.1)


def test_the_error_of_drawing_contexts_is_that_of_drawing_them_again():
    torch.manual_seed(0)
    effects, base = torch.randn(40), torch.randn(40, 1)
    shares, errors = [], []
    for _ in range(150):
        columns = torch.randint(40, (40, 5))
        top = (2 + base + effects[columns] + torch.randn(40, 5)).double()
        estimate, drawn = ratio(top, torch.ones(40, 5).double(), columns)
        shares.append(estimate.value)
        errors.append(drawn)
    assert sum(errors) / len(errors) == pytest.approx(torch.tensor(shares).std().item(), rel=0.4)
