"""Teachers of another tokenizer behind HTTP, scoring ahead, or several: the numbers of one in this process."""

import pytest
import torch

from opd_trl.preflight.inspection import preflight
from opd_trl.teachers.server import PROBE_TEXT
from opd_trl.teachers.text_ids import ALONE, SPAN, TEXT_IDS, text_ids
from opd_trl.teachers.vocabulary import SharedIds
from opd_trl.trainers.looks.rollouts import Rollout, score
from opd_trl.trainers.passes import understood
from tests import tiny
from tests.serving.server import serve
from tests.teachers.conftest import proxy
from tests.teachers.pooling_stand_in import pooling_stand_in
from tests.trainers.build import fixed_batch, opd_trainer
from tests.two_tokenizers import build


TEXTS = [
    "The License grants you rights.",
    "12 plus 345 is 357",
    "naïve €",
    "x",
    "fine  two spaces",
    "Unless",
    "def f(x):",
    "as is",
]
NAMES = ["unigram", "llama", "llama", "unigram", "llama", "unigram", "llama", "llama"]
SUPPORTS = ("student", "full", "sampled")


def folder(path, kind: str, *, reads: bool = False, **options) -> str:
    tokenizer = build(kind)
    options |= {"tokenizer": tokenizer, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    return tiny.save_reader(path, PROBE_TEXT, **options) if reads else tiny.save(path, **options)


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> str:
    return folder(tmp_path_factory.mktemp("byte-level"), "byte-level")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, str]:
    sizes = {"unigram": 48, "llama": 64}
    return {
        kind: folder(tmp_path_factory.mktemp(kind), kind, reads=True, seed=size, hidden_size=size)
        for kind, size in sizes.items()
    }


@pytest.fixture(scope="module")
def url(teachers) -> str:
    with serve(teachers["unigram"]) as address:
        yield address


def written(trainer) -> dict:
    """A batch of the trainer in which the student has written `TEXTS`, scored by teachers that score ahead."""
    batch = {name: x for name, x in fixed_batch(trainer).items() if not name.startswith("text_")}
    rows = [[*trainer.tokenizer.encode(text), trainer.tokenizer.eos_token_id] for text in TEXTS]
    width = max(map(len, rows))
    batch["completion_ids"] = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    batch["completion_mask"] = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    batch |= trainer.shared_ids.entries(batch)
    batch["loss_mask"] = understood(trainer, batch, batch["completion_mask"]).long()
    batch["num_loss_tokens"] = torch.tensor(100)
    return batch | trainer.score_ahead(batch)


def loss_and_gradient(trainer, batch):
    loss = trainer._compute_loss(trainer.model, batch)
    return loss.detach(), *torch.autograd.grad(loss, list(trainer.model.parameters()))


def trainer_of(tmp_path, student, teacher, **options):
    fields = {"teacher_vocabulary": "text", "per_device_train_batch_size": 8, "teacher_server_retries": 0}
    return opd_trainer(tmp_path, student, teacher, **fields | options)


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("where", ["teacher_batch_size", "teacher_offload", "serve-teacher", "pooling"])
def test_a_teacher_elsewhere_gives_the_loss_and_gradient_of_one_in_this_process(
    tmp_path, student, teachers, url, support, where
):
    path, options = teachers["unigram"], {"loss_support": support, "loss_temperature": 0.8}
    here = trainer_of(tmp_path, student, path, **options)
    expected = loss_and_gradient(here, written(here))
    assert expected[0].abs() > 0.01
    ahead = {"teacher_batch_size": 3} if where == "teacher_batch_size" else {"teacher_offload": "cpu"}
    served = {"teacher_model_name_or_path": path}
    if where == "pooling":
        with pooling_stand_in(url) as server:
            server.tokenizer = build("unigram")
            there = trainer_of(tmp_path, student, None, teacher_server_url=server.url, **served, **options)
            batch = written(there)
    elif where == "serve-teacher":
        there = trainer_of(tmp_path, student, None, teacher_server_url=url, **served, **options)
        batch = written(there)
    else:
        there = trainer_of(tmp_path, student, path, **ahead, **options)
        batch = written(there)
    assert there.teacher.scores_ahead(there)
    assert batch["teacher_hidden_states"].shape[:2] == batch[TEXT_IDS].shape  # by the teacher's own tokens
    torch.testing.assert_close(loss_and_gradient(there, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("support", "options"), [("full", {}), ("student", {"teacher_batch_size": 3}), ("sampled", {})]
)
def test_each_row_is_read_by_its_own_teacher_in_its_own_tokens(tmp_path, student, teachers, support, options):
    fields = {"dataset": tiny.questions(teacher=NAMES), "loss_support": support, **options}
    trainer = trainer_of(tmp_path, student, teachers, **fields)
    batch = written(trainer)
    found = loss_and_gradient(trainer, batch)
    parts = []
    for place, (name, path) in enumerate(teachers.items()):
        alone = trainer_of(tmp_path, student, path, loss_support=support)
        # Both teachers are compared on what the student shares with both of them.
        alone.shared_ids = alone.shared_ids.both(trainer.shared_ids)
        assert alone.shared_ids.num_ids == trainer.shared_ids.num_ids
        own = torch.tensor([other == name for other in NAMES])
        one = written(alone)
        one["loss_mask"] = one["loss_mask"] * own[:, None]
        for entry in (ALONE, SPAN):
            assert torch.equal(one[entry][own], batch[entry][own])
        assert batch["teacher_index"].eq(place).equal(own)
        parts.append(loss_and_gradient(alone, one))
    torch.testing.assert_close(found, tuple(map(sum, zip(*parts, strict=True))), rtol=1e-4, atol=1e-6)


def test_several_teachers_train_and_one_of_them_may_be_served(tmp_path, student, teachers, url):
    named = {"unigram": url, "llama": teachers["llama"]}
    options = {"teachers": named, "dataset": tiny.questions(teacher=NAMES), "loss_support": "sampled", "max_steps": 2}
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    with pytest.raises(ValueError, match=r"teacher 'unigram': .* sends no tokenizer"):
        trainer_of(tmp_path, student, None, **options)
    trainer = trainer_of(tmp_path, student, None, teacher_server_models={"unigram": teachers["unigram"]}, **options)
    before = [x.detach().clone() for x in trainer.model.parameters()]
    trainer.train()
    log = trainer.state.log_history[0]
    assert {"distillation/per_token_divergence/unigram", "distillation/per_token_divergence/llama"} <= log.keys()
    assert any(not torch.equal(x, y) for x, y in zip(before, trainer.model.parameters(), strict=True))
    prompts = [trainer.teacher_prompts.tokenizer_of({"teacher_index": [place]}, 0) for place in (0, 1)]
    assert [len(tokenizer) for tokenizer in prompts] == [len(build("unigram")), len(build("llama"))]


def test_tokens_are_compared_as_single_ones_where_all_teachers_have_their_bytes():
    own, (one, other) = build("byte-level"), (build("unigram"), build("lower case"))
    first, second = (text_ids(own, theirs, len(own), len(theirs)) for theirs in (one, other))
    both = SharedIds.of_all([first, second])
    common = first.pairs[0].same.keys() & second.pairs[0].same.keys()
    assert len(common) < first.num_ids
    assert both.num_ids == len(common)
    assert [pair.same.keys() for pair in both.pairs] == [common, common]
    assert [pair.tokenizer for pair in both.pairs] == [one, other]


def test_the_preflight_reads_each_prompt_by_its_own_tokenizer(tmp_path, student, teachers):
    contexts = [f"Answer with {'b' * (i + 1)}." for i in range(8)]
    data = tiny.questions(teacher=NAMES, privileged_context=contexts)
    trainer = trainer_of(tmp_path, student, teachers, dataset=data)
    batch = written(trainer)
    for scored in score(trainer, Rollout([], batch)):
        rows = torch.tensor([name == scored.teacher_name for name in NAMES])
        assert torch.equal(scored.kept, batch[ALONE] & batch["loss_mask"].bool() & rows[:, None])
    found = {x["name"]: x for x in preflight(trainer, prompts=8, contexts=2)["findings"]}
    assert found["privileged context"]["verdict"] == "ok"
    assert found["tokens aligned"]["verdict"] == "ok"
    assert found["probability compared"]["verdict"] in ("ok", "fix")
    assert found["vocabulary"]["figure"].startswith("text: ")


def refused(tmp_path, student, *, error=ValueError, **options) -> str:
    with pytest.raises(error) as found:
        trainer_of(tmp_path, student, None, **options)
    assert not (tmp_path / "out").exists()
    return str(found.value)


def test_a_server_needs_its_own_tokenizer_and_hidden_states(tmp_path, student, teachers, url):
    assert "which sends no tokenizer. Name a folder" in refused(tmp_path, student, teacher_server_url=url)
    wrong = {"teacher_server_url": url, "teacher_model_name_or_path": teachers["llama"]}
    message = refused(tmp_path, student, **wrong)
    assert "is not its own: " in message
    assert "Give the one of the model that is served" in message
    with proxy(url, "--plain") as plain:
        right = {"teacher_server_url": plain, "teacher_model_name_or_path": teachers["unigram"]}
        assert "a completions endpoint normalises over its whole" in refused(
            tmp_path, student, loss_support="sampled", **right
        )


def test_the_tokenizer_of_a_server_may_be_passed_in_python(tmp_path, student, url):
    options = {"teacher_processing_class": build("unigram")}
    trainer = trainer_of(tmp_path, student, url, trainer_options=options)
    assert trainer.shared_ids.pairs[0].tokenizer is options["teacher_processing_class"]


@pytest.mark.parametrize(
    ("teachers", "models"),
    [({"a": "some/model"}, {"a": "x"}), ({"a": "http://127.0.0.1:1"}, {"b": "x"}), (None, {"a": "x"})],
    ids=["no address", "another name", "no teachers"],
)
def test_a_model_beside_no_server_is_refused(tmp_path, student, teachers, models):
    message = refused(tmp_path, student, teachers=teachers, teacher_server_models=models)
    assert "teacher_server_models must map names of `teachers` with an address to models" in message
