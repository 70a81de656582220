"""What a teacher of another tokenizer teaches in expectation, by enumeration of all texts (float64, to 1e-10)."""

import itertools

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from opd_trl.losses.head import Head
from opd_trl.models.forward import read_head
from opd_trl.teachers.text_ids import ALONE, SPAN
from opd_trl.teachers.text_teacher import TextScores

from .build import fixed_batch, opd_trainer


LONGEST, END = 2, "<end>"
LETTERS, PAIR = ("e", "d", "c", "b", "a"), ("a", "b", "c", "d", "e", "ab")
UNIQUE = ("ab", "b", "c", "d", "e")
BYTES, ACCENT = ("a", "b", "c", "Ã", "©"), ("a", "b", "c", "d", "é")


def tokenizer_of(pieces: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """A BPE of these pieces and an end token; `BYTES` is byte-level, of an accented letter in two bytes."""
    backend = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [x for x in [("a", "b")] if {"a", "ab"} <= {*pieces}])
    )
    backend.decoder = decoders.ByteLevel() if pieces == BYTES else decoders.Fuse()
    if pieces == BYTES:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)


def model_of(tokenizer, seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=16, n_embd=8, n_layer=1, n_head=2, initializer_range=0.5,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).double()


class Toy:
    """A trainer on toy vocabularies, and all texts that its student can write."""

    def __init__(self, tmp_path, student: tuple[str, ...], teacher: tuple[str, ...], **options):
        own, theirs = tokenizer_of(student), tokenizer_of(teacher)
        self.trainer = opd_trainer(
            tmp_path,
            model_of(own, 0),
            model_of(theirs, 1),
            dataset=Dataset.from_dict({"prompt": ["b"] * 8}),
            trainer_options={"processing_class": own, "teacher_processing_class": theirs},
            teacher_vocabulary="text",
            max_completion_length=LONGEST,
            **options,
        )
        self.trainer.model.double()
        self.trainer.teacher.model.double()
        self.own, self.theirs = own, theirs
        end, others = own.eos_token_id, range(len(own) - 1)
        rows = [(*x, end) for n in range(LONGEST) for x in itertools.product(others, repeat=n)]
        self.rows = rows + list(itertools.product(others, repeat=LONGEST))
        self.parameters = [x for x in self.trainer.model.parameters() if x.requires_grad]
        self.template = fixed_batch(self.trainer)

    def log_p(self, ids) -> torch.Tensor:
        """Log-probability of a completion of the student, with its graph."""
        return self.sum_of(self.trainer.model, self.own.encode("b"), ids)

    def log_q(self, ids) -> torch.Tensor:
        """Log-probability of tokens of the teacher."""
        return self.sum_of(self.trainer.teacher.model, self.theirs.encode("b"), ids).detach()

    @staticmethod
    def sum_of(model, prompt, ids) -> torch.Tensor:
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)[range(len(ids)), list(ids)].sum()

    def batch(self, ids) -> dict:
        """A micro-batch of one completion, as training makes it."""
        batch = {name: x[:1] if x.ndim else x for name, x in self.template.items()}
        batch = {name: x for name, x in batch.items() if not name.startswith("text_")}
        batch["completion_ids"] = torch.tensor([ids])
        batch["completion_mask"] = torch.ones_like(batch["completion_ids"])
        batch |= self.trainer.shared_ids.entries(batch)
        batch["loss_mask"] = (batch[SPAN] >= 0).long()
        return batch

    def expected(self) -> tuple[list[torch.Tensor], float]:
        """The expectation of the gradient, and of the divergences that are reported, over the student's texts."""
        found, value = [torch.zeros_like(x) for x in self.parameters], 0.0
        stats = []
        self.trainer.figures.add = lambda stats_of_step, *_: stats.append(stats_of_step[""])
        for ids in self.rows:
            batch, weight = self.batch(ids), self.log_p(ids).exp().detach()
            batch["num_loss_tokens"] = torch.ones(())
            loss = self.trainer._compute_loss(self.trainer.model, batch)
            gradients = torch.autograd.grad(weight * loss, self.parameters, allow_unused=True)
            found = [x if y is None else x + y for x, y in zip(found, gradients, strict=True)]
            value += weight * stats.pop()["per_token_divergence"].nansum()
        return found, float(value)

    def spans(self) -> dict[tuple, tuple]:
        """(What is written before a span, its tokens) -> the same in the teacher's tokens, cut by hand."""
        found = {}
        for ids in self.rows:
            start, before, pieces = 0, [], [self.own.convert_ids_to_tokens(i) for i in ids]
            for end in range(1, len(ids) + 1):
                text = "".join(pieces[start:end]).replace("Ã©", "é")
                theirs = self.theirs.encode(text)
                if "".join(self.theirs.convert_ids_to_tokens(theirs)) == text and not set(text) & {"Ã", "©"}:
                    found[tuple(ids[:start]), tuple(ids[start:end])] = tuple(before), tuple(theirs)
                    start, before = end, before + theirs
            # what is left is no text that the teacher could read
        return found

    def gradient(self, value: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(value, self.parameters, allow_unused=True, materialize_grads=True))

    def conditional(self, before, span, there) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """P(before), and log-probabilities of the span after it under both."""
        log_p = self.log_p([*before, *span]) - (self.log_p(before) if before else 0.0)
        log_q = self.log_q([*there[0], *there[1]]) - (self.log_q(there[0]) if there[0] else 0.0)
        reached = self.log_p(before).exp().detach() if before else torch.ones((), dtype=torch.float64)
        return reached, log_p, log_q


def check_equal(found, wanted):
    assert max(x.abs().max().item() for x in wanted) > 1e-3
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_the_sampled_loss_is_the_reverse_kl_between_next_spans_where_their_ends_need_no_look_ahead(tmp_path):
    toy = Toy(tmp_path, PAIR, LETTERS, loss_support="sampled")
    value = torch.zeros((), dtype=torch.float64)
    for (before, span), there in toy.spans().items():
        reached, log_p, log_q = toy.conditional(before, span, there)
        value = value + reached * log_p.exp() * (log_p - log_q)
    found, reported = toy.expected()
    check_equal(found, toy.gradient(value))
    # The reported figures add up to the reverse KL between whole texts.
    whole = sum(
        toy.log_p(ids).exp() * (toy.log_p(ids) - toy.log_q(toy.trainer.shared_ids.pairs[0].aligned(ids).ids))
        for ids in toy.rows
    )
    assert reported == pytest.approx(float(whole), abs=1e-10)


def test_text_that_the_teacher_cannot_read_is_a_dropped_tail(tmp_path):
    """Spans of two tokens of the student, and half letters: sum of dP(s) log P(s)/Q(s) over the spans it can read."""
    toy = Toy(tmp_path, BYTES, ACCENT, loss_support="sampled")
    spans = toy.spans()
    assert {len(span) for _, span in spans} == {1, 2}
    value = torch.zeros((), dtype=torch.float64)
    for (before, span), there in spans.items():
        reached, log_p, log_q = toy.conditional(before, span, there)
        value = value + reached * log_p.exp() * (log_p - log_q).detach()
    check_equal(toy.expected()[0], toy.gradient(value))


def test_other_supports_compare_shared_tokens_and_add_the_longer_spans(tmp_path):
    toy = Toy(tmp_path, PAIR, LETTERS, loss_support="full")
    shared = toy.trainer.shared_ids.pairs[0].same
    value = torch.zeros((), dtype=torch.float64)
    befores = {}
    for (before, span), there in toy.spans().items():
        reached, log_p, log_q = toy.conditional(before, span, there)
        befores[before] = there[0], reached
        if span[0] not in shared:
            value = value + reached * log_p.exp() * (log_p - log_q).detach()
    for before, (there, reached) in befores.items():
        own = torch.stack([toy.conditional(before, (i,), (there, (j,)))[1] for i, j in shared.items()])
        theirs = torch.stack([toy.conditional(before, (i,), (there, (j,)))[2] for i, j in shared.items()])
        mass, p, q = own.exp().sum().detach(), own.log_softmax(-1), theirs.log_softmax(-1)
        value = value + reached * mass * (p.exp() * (p - q)).sum()
    check_equal(toy.expected()[0], toy.gradient(value))


def same_texts(toy: Toy) -> None:
    """Give the teacher the student's own distribution of texts, in its own tokens."""
    rows = {ids: toy.trainer.shared_ids.pairs[0].aligned(ids) for ids in toy.rows}
    weights = {ids: toy.log_p(ids).exp().detach() for ids in toy.rows}

    def begins(there) -> torch.Tensor:
        return torch.stack([weights[ids] for ids, row in rows.items() if tuple(row.ids[: len(there)]) == there]).sum()

    def scores(model, batch):
        ids = tuple(batch["completion_ids"][0].tolist())
        log_q = []
        for (start, first), (end, last) in itertools.pairwise([(0, 0), *rows[ids].ends]):
            ratio = begins(tuple(rows[ids].ids[:last])) / begins(tuple(rows[ids].ids[:first]))
            log_q += [ratio.log()] * (end - start)
        head = read_head(toy.trainer.model)
        states = torch.zeros(1, len(ids), head.weight.size(1), dtype=torch.float64)
        own = Head(torch.zeros(toy.trainer.num_rows, head.weight.size(1), dtype=torch.float64))
        return {"": TextScores(None, states, own, batch[ALONE], batch[SPAN], torch.stack(log_q).unsqueeze(0))}

    toy.trainer.teacher_scores = scores


@pytest.mark.parametrize(
    ("student", "teacher", "largest"),
    [
        (UNIQUE, LETTERS, 0.0),
        # `a` is a token of the teacher only where no `b` follows, and says so: the student's `a` does not.
        (LETTERS, PAIR, 1e-3),
        # The other way round; and the student can write `ab` in two ways, each compared with the whole text.
        (PAIR, LETTERS, 1e-3),
    ],
)
def test_where_both_give_the_same_texts_the_student_rests_if_no_span_begins_a_longer_one(
    tmp_path, student, teacher, largest
):
    toy = Toy(tmp_path, student, teacher, loss_support="sampled")
    same_texts(toy)
    gradients, reported = toy.expected()
    found = max(x.abs().max().item() for x in gradients)
    assert found > largest if largest else found < 1e-10
    if student != PAIR:
        assert reported == pytest.approx(0.0, abs=1e-10)  # the log-ratios of a whole text cancel
