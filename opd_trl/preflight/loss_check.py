"""Does a loss lead to the teacher? Its gradient on given tokens beside the exact one, in figures and one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..losses.comparison import TokenGradients, compare_gradients
from ..losses.divergences import DIVERGENCES
from ..losses.next_token import NextToken
from ..losses.objective import Objective, Tokens
from .findings import INFO, Finding


TOP_KS = (1, 5, 20, 100)
CONFIGURED = "configured"
# Root mean square of a token's gradient where student and teacher are the same. A right loss gives 0, or float32's
# rounding of the tail bucket (about 1e-7); the term of a dropped tail is p_j (1_S(j) - sum_S p).
STATIONARY = 1e-5
# Nats per token below which two models are the same but for float32's rounding.
SAME = 1e-6
# Below this cosine with the exact gradient, a better form is named.
CLOSE = 0.9


@dataclass(frozen=True)
class Form:
    """A form of the loss: `name`, K (None: the whole vocabulary or one token), and the objective."""

    name: str
    top_k: int | None
    objective: Objective

    @property
    def key(self) -> str:
        return f"{self.name} {self.top_k}"


@dataclass(frozen=True)
class LossRow:
    """What a form of the loss gives on the checked tokens; means per token.

    Attributes:
        name, top_k: of the `Form`.
        loss: nats.
        cosine: of its gradient in the logits with the exact one, over all tokens at once; None where one is zero.
        block_cosine: the same in the parameters of a block of the student; None where it was not asked for.
        norm_ratio: its norm / the exact one.
        bias: norm of what remains of it where the teacher equals the student, / the exact norm. The "+1".
        gradient_at_teacher: root mean square over tokens of that remainder.
        student_outside, teacher_outside: probability outside the support.
        tail_pull: how fast its gradient lowers the student's probability outside its own TopK, over how fast the exact
            one does; negative: it raises it. None where the exact gradient does not lower it.
    """

    name: str
    top_k: int | None
    loss: float
    cosine: float | None
    block_cosine: float | None
    norm_ratio: float | None
    bias: float | None
    gradient_at_teacher: float
    student_outside: float
    teacher_outside: float
    tail_pull: float | None = None

    @property
    def agreement(self) -> float | None:
        """Cosine with the exact gradient: in the student's parameters, or in the logits where only that is known."""
        return self.cosine if self.block_cosine is None else self.block_cosine

    @property
    def is_stationary_at_teacher(self) -> bool:
        """Is its gradient zero where student and teacher agree?"""
        return self.gradient_at_teacher <= STATIONARY


def forms_of(configured: Objective, *, top_ks: Sequence[int] = TOP_KS, vocab_size: int) -> list[Form]:
    """The configured objective, then every other form of its divergence, for each K.

    Args:
        configured: what the user's recipe trains.
        top_ks: K of the further forms; that of a configured TopK joins them, those above the vocabulary are left out.
        vocab_size: V.

    Example:
        >>> plain = Objective(20, "student", "reverse_kl", 0.5, "drop", False, None)
        >>> [form.key for form in forms_of(plain, top_ks=[5], vocab_size=100)][:4]
        ['configured 20', 'plain 5', 'stop-gradient 5', 'renormalised 5']
    """
    on_top_k = configured.support not in ("full", "sampled")
    reverse = DIVERGENCES[configured.divergence].stop_gradient_acts or not on_top_k
    base = replace(
        configured,
        support=configured.support if on_top_k else "student",
        pointwise_clip=None,
        baseline=None,
        extrapolation=1.0,
        importance_cap=None,
    )
    if configured.support == "sampled":
        base = replace(base, divergence="reverse_kl")
    tails: dict[str, dict[str, Any]] = {
        "plain": {"tail": "drop", "stop_gradient": False},
        "stop-gradient": {"tail": "drop", "stop_gradient": True},
        "renormalised": {"tail": "renormalize", "stop_gradient": True},
        "tail bucket": {"tail": "bucket", "stop_gradient": True},
        "sampled tail": {"tail": "sample", "stop_gradient": True},
    }
    if base.divergence != "reverse_kl":  # the sampled token estimates the tail of no other
        del tails["sampled tail"]
    if not reverse:
        tails = {
            "dropped tail" if name == "plain" else name: x for name, x in tails.items() if name != "stop-gradient"
        }
    ks = sorted({k for k in (*top_ks, *([configured.top_k] if on_top_k else [])) if k <= vocab_size})
    forms = [Form(CONFIGURED, configured.top_k if on_top_k else None, configured)]
    for k in ks:
        for name, options in tails.items():
            if k > 1 or name != "renormalised":  # on one token it is identically zero
                forms.append(Form(name, k, replace(base, top_k=k, **options)))
    if reverse:
        forms.append(Form("sampled token", None, replace(base, support="sampled", divergence="reverse_kl")))
    forms.append(Form("whole vocabulary", None, replace(base, support="full", tail="drop", stop_gradient=False)))
    return forms


@dataclass
class Sums:
    """Sums over tokens for one form, in float64."""

    loss: float = 0.0
    squared_norm: float = 0.0
    dot: float = 0.0
    student_mass: float = 0.0
    teacher_mass: float = 0.0
    tail_pull: float = 0.0
    exact_tail_pull: float = 0.0
    at_teacher: float = 0.0

    def add(self, found: TokenGradients) -> None:
        added = ("loss", "squared_norm", "dot", "student_mass", "teacher_mass", "tail_pull", "exact_tail_pull")
        for name in added:
            setattr(self, name, getattr(self, name) + getattr(found, name).double().sum().item())


class LossCheck:
    """Adds up what the forms of a loss give, batch by batch.

    Args:
        forms: from `forms_of`.
    """

    def __init__(self, forms: Sequence[Form]):
        self.forms = list(forms)
        configured = forms[0].objective
        # The sampled token estimates the reverse KL, whatever `divergence` says.
        self.divergence = "reverse_kl" if configured.support == "sampled" else configured.divergence
        self.beta, self.temperature = configured.beta, configured.temperature
        self.num_tokens = 0
        self.exact = Sums()
        self.sums = {form.key: Sums() for form in self.forms}

    def add(self, student: NextToken, teacher: NextToken, tokens: Tokens) -> dict[str, Tensor]:
        """Compare on N more tokens; return dL/dh `(N, H)` of the exact divergence (key "") and of each form."""
        objectives = {form.key: form.objective for form in self.forms}
        options = {"divergence": self.divergence, "beta": self.beta, "temperature": self.temperature}
        exact, found = compare_gradients(student, teacher, tokens, objectives, **options)
        # With log-probabilities of its own as the reference, extrapolation rests at the teacher too.
        _, alike = compare_gradients(student, student, tokens._replace(reference_logps=None), self._plain(), **options)
        self.num_tokens += len(student)
        self.exact.add(exact)
        for key, gradients in found.items():
            self.sums[key].add(gradients)
            self.sums[key].at_teacher += alike[key].squared_norm.double().sum().item()
        return {"": exact.hidden} | {key: gradients.hidden for key, gradients in found.items()}

    def _plain(self) -> dict[str, Objective]:
        """The objectives without extrapolation, which aims beyond the teacher on purpose."""
        return {form.key: replace(form.objective, extrapolation=1.0) for form in self.forms}

    def rows(self, block_cosines: dict[str, float | None] | None = None) -> list[LossRow]:
        """The figures of every form, the configured one first."""
        return [self._row(form, (block_cosines or {}).get(form.key)) for form in self.forms]

    def _row(self, form: Form, block_cosine: float | None) -> LossRow:
        sums, n = self.sums[form.key], max(self.num_tokens, 1)
        exact_norm, norm = self.exact.squared_norm**0.5, sums.squared_norm**0.5
        return LossRow(
            name=form.name,
            top_k=form.top_k,
            loss=sums.loss / n,
            cosine=ratio(sums.dot, exact_norm * norm),
            block_cosine=block_cosine,
            norm_ratio=ratio(norm, exact_norm),
            bias=ratio(sums.at_teacher**0.5, exact_norm),
            gradient_at_teacher=(sums.at_teacher / n) ** 0.5,
            student_outside=max(0.0, 1 - sums.student_mass / n),
            teacher_outside=max(0.0, 1 - sums.teacher_mass / n),
            tail_pull=ratio(sums.tail_pull, sums.exact_tail_pull),
        )

    @property
    def exact_loss(self) -> float:
        """The divergence over the whole vocabulary, nats per token."""
        return self.exact.loss / max(self.num_tokens, 1)


def ratio(a: float, b: float) -> float | None:
    """a / b, or None where b is zero.

    >>> ratio(1.0, 2.0), ratio(1.0, 0.0)
    (0.5, None)
    """
    return a / b if b > 0 else None


def cosine_of(a: Sequence[Tensor], b: Sequence[Tensor]) -> float | None:
    """Cosine of two gradients given as lists of tensors; None where one is zero.

    >>> import torch
    >>> cosine_of([torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 1.0])])
    0.7071067811865475
    """
    dot, of_a, of_b = (
        sum((x.double() * y.double()).sum().item() for x, y in zip(one, other, strict=True))
        for one, other in ((a, b), (a, a), (b, b))
    )
    return ratio(dot, (of_a * of_b) ** 0.5)


def judge(rows: Sequence[LossRow], exact_loss: float) -> tuple[str, str]:
    """A verdict (`ok`, `fix` or `stop`) on the configured loss, the first of the rows, and one sentence of advice."""
    configured, others = rows[0], rows[1:]
    if not configured.is_stationary_at_teacher:
        return "stop", (
            f"The configured loss is stationary away from the teacher: where student and teacher are the same, a "
            f"gradient of {configured.gradient_at_teacher:.1e} per token remains and trains a perfect student away. "
            "Set loss_tail: renormalize or bucket, or stop_gradient: true where the divergence is the reverse KL."
        )
    if exact_loss < SAME:
        return "ok", "Student and teacher give the same distributions: loss 0 and gradient 0, as it must be."
    agreement = configured.agreement
    if agreement is None:
        return "stop", "The configured loss has no gradient on these tokens. Take a larger loss_top_k."
    best = max(
        (row for row in others if row.top_k is not None and row.is_stationary_at_teacher),
        key=lambda row: row.cosine or 0.0,
        default=None,
    )
    if agreement >= CLOSE or best is None or (best.cosine or 0.0) <= (configured.cosine or 0.0):
        return "ok", (
            f"The configured loss rests at the teacher, and its gradient points where the exact one does (cosine "
            f"{agreement:.3f})."
        )
    return "ok", (
        f"The configured loss rests at the teacher. Its gradient agrees with the exact one to a cosine of "
        f"{agreement:.3f}; {best.name} with K={best.top_k} ({settings_of(best)}) reaches {best.cosine:.3f} in the "
        f"logits. Whether that matters, a trial shows: opd-trl preflight --losses."
    )


def settings_of(row: LossRow) -> str:
    """The configuration of a form.

    >>> settings_of(LossRow("tail bucket", 20, *[0.0] * 8))
    'loss_tail: bucket and loss_top_k: 20'
    """
    tails = {"renormalised": "renormalize", "tail bucket": "bucket", "sampled tail": "sample"}
    tail = tails.get(row.name, "drop")
    return f"loss_tail: {tail} and loss_top_k: {row.top_k}"


def tail_finding(pull: float | None, top_k: int) -> Finding:
    """Does what leaves the student's TopK come back? `pull` is `LossRow.tail_pull` of the configured loss.

    Once probability is outside, only a gradient that lowers it there leads home. A dropped tail with a stop-gradient
    is unbiased and yet not centred: it lifts every token outside by p_j D_S, with D_S the divergence on the support. A
    tail bucket weighs the tail as one token. At a rate that suits them both learn nevertheless (docs/evidence.md).
    """
    name = f"pull on what is outside the student's Top-{top_k}"
    if pull is None:
        return Finding(name, INFO, "none to have", "The exact gradient does not lower it: the teacher wants it.")
    figure = f"{pull:.2f} of the exact gradient's"
    does = "lowers" if pull > 0 else "raises"
    sentence = f"The configured loss {does} probability outside the support, which the teacher wants lower."
    return Finding(name, INFO, figure, sentence, value=pull)
