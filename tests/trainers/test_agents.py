"""Rollouts with real tool calls: which ids the teacher reads, which tokens have a loss, and what the loss is."""

import json

import pytest
import torch

from opd_trl import OPSDConfig, OPSDTrainer
from opd_trl.cli.main import main
from opd_trl.data.row_checks import RowError
from opd_trl.data.toy_calculator import LEARNED, Calculator, build_tokenizer, manual
from opd_trl.data.toy_task import build_model
from opd_trl.evaluation import graded_text
from opd_trl.trainers.agents import turns_of
from tests.trainers.build import fixed_batch, opd_trainer, opsd_trainer, settings
from tests.trainers.calls import FULL, HOW, PROBLEMS, agent, press, rows, save_caller


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def caller(tmp_path_factory) -> str:
    return save_caller(tmp_path_factory.mktemp("caller"))


def rendered(tokenizer, turns, **options):
    """Ids of a whole conversation by the chat template alone, and which of them it marks as the assistant's."""
    options |= {"tools": [press], "return_dict": True, "return_assistant_tokens_mask": True}
    found = tokenizer.apply_chat_template(turns, **options)
    return found["input_ids"], found["assistant_masks"]


def dense(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def oracle(tokenizer, student, teacher, prompts, told, completions):
    """Mean reverse KL on the assistant's tokens of whole conversations, each model reading its own rendering."""
    total, count = 0.0, 0
    for prompt, teacher_prompt, completion in zip(prompts, told, completions, strict=True):
        ids, wrote = rendered(tokenizer, [*prompt, *completion])
        theirs, wrote_there = rendered(tokenizer, [*teacher_prompt, *completion])
        at, there = ([i - 1 for i, flag in enumerate(mask) if flag] for mask in (wrote, wrote_there))
        p = dense(student, ids)[at]
        with torch.no_grad():
            q = dense(teacher, theirs)[there]
        total, count = total + (p.exp() * (p - q)).sum(), count + len(at)
    return total / count


def told(prompts):
    """What the teacher reads: the manual in a system turn."""
    return [[{"role": "system", "content": manual(LEARNED)}, *prompt] for prompt in prompts]


def conversations(trainer):
    """Prompts, with what an environment added, and completions of the last batch, as messages."""
    return trainer._prompts, trainer.last_completions[-len(PROBLEMS) :]


def check_against_oracle(tokenizer, trainer, batch, teacher, teacher_prompts):
    prompts, completions = conversations(trainer)
    assert max(sum(turn["role"] == "assistant" for turn in x) for x in completions) >= 3
    for row, (prompt, theirs, completion) in enumerate(zip(prompts, teacher_prompts, completions, strict=True)):
        for name, before in (("prompt", prompt), ("teacher_prompt", theirs)):
            ids, wrote = rendered(tokenizer, [*before, *completion])
            head = batch[f"{name}_ids"][row][batch[f"{name}_mask"][row].bool()].tolist()
            assert head == rendered(tokenizer, before, add_generation_prompt=True)[0]
            mask = batch["completion_mask"][row].bool()
            assert head + batch["completion_ids"][row][mask].tolist() == ids
            assert batch["loss_mask"][row][mask].tolist() == wrote[len(head) :]
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    expected = oracle(tokenizer, trainer.model, teacher, prompts, teacher_prompts, completions)
    assert expected > 0.01
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-4, atol=1e-6)
    expected.backward()
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("ahead", [None, 2])
@pytest.mark.parametrize("how", HOW)
def test_a_self_teacher_reads_its_manual_before_the_whole_trace(tmp_path, caller, tokenizer, how, ahead):
    trainer = agent(tmp_path, caller, how, teacher_batch_size=ahead)
    batch = fixed_batch(trainer)
    prompts, _ = conversations(trainer)
    check_against_oracle(tokenizer, trainer, batch, trainer.teacher.module(trainer.model), told(prompts))


class Display(Calculator):
    """A calculator that begins each rollout with an observation."""

    seen = " go"

    def reset(self, keys, **row):
        super().reset(keys)
        return self.seen


def test_a_hint_stands_in_the_first_user_turn_behind_what_the_environment_added(tmp_path, caller, tokenizer):
    options = {"privileged_builder": "hint", "privileged_template": "{{ prompt }} {{ context }}"}
    trainer = agent(tmp_path, caller, {"environment_factory": Display}, **options)
    batch = fixed_batch(trainer)
    prompts, _ = conversations(trainer)
    assert all(prompt[-1]["content"].endswith(" go") for prompt in prompts)
    hinted = [[{"role": "user", "content": f"{prompt[0]['content']} {manual(LEARNED)}"}] for prompt in prompts]
    check_against_oracle(tokenizer, trainer, batch, trainer.teacher.module(trainer.model), hinted)


def test_a_separate_teacher_reads_the_students_own_trace(tmp_path, caller, tokenizer):
    teacher = build_model(tokenizer, seed=1)
    options = {"environment_factory": Display, "teacher_processing_class": tokenizer}
    trainer = opd_trainer(
        tmp_path, caller, teacher, dataset=rows().remove_columns("privileged_context"), trainer_options=options, **FULL
    )
    batch = fixed_batch(trainer)
    assert "teacher_prompt_ids" not in batch
    prompts, _ = conversations(trainer)
    batch |= {f"teacher_prompt_{x}": batch[f"prompt_{x}"] for x in ("ids", "mask")}
    check_against_oracle(tokenizer, trainer, batch, teacher.eval(), prompts)


class Silent:
    """An environment with another tool."""

    def reset(self, **row):
        pass

    def wait(self) -> str:
        """Do nothing."""
        return "0"


def test_each_environment_tells_the_teacher_of_its_own_tools(tmp_path, caller, tokenizer):
    kinds = ["calculator", "silent", "silent", "silent"]
    dataset = rows().add_column("environment", kinds)
    several = {"environment_factory": {"calculator": Calculator, "silent": Silent}}
    trainer = agent(tmp_path, caller, several, dataset=dataset)
    batch = fixed_batch(trainer)
    for kind, ids, mask in zip(kinds, batch["teacher_prompt_ids"], batch["teacher_prompt_mask"], strict=True):
        text = tokenizer.decode(ids[mask.bool()])
        assert text.startswith("<|system|>press next:k" if kind == "calculator" else "<|system|>wait next:k")
    given = trainer.given_rows(list(dataset))
    fixed_batch(trainer, list(dataset)[::-1])
    again = trainer.teacher_prompts.read(given, ["a row"] * 4)  # after a batch of another order
    pairs = zip(batch["teacher_prompt_ids"], batch["teacher_prompt_mask"], strict=True)
    assert [prompt.ids for prompt in again] == [ids[mask.bool()].tolist() for ids, mask in pairs]


def test_an_environment_that_owns_its_prompts_has_one_context_for_all(tmp_path, caller, tokenizer):
    class Owner(Calculator):
        def reset(self, **row):
            super().reset(json.dumps(LEARNED))
            return "3 twin back"

    trainer = OPSDTrainer(
        caller,
        args=OPSDConfig(**settings(tmp_path, privileged_context=manual(LEARNED), **FULL)),
        environment_factory=Owner,
    )
    batch = fixed_batch(trainer, [{}] * 4)
    assert tokenizer.decode(batch["teacher_prompt_ids"][0]).startswith(f"<|system|>press {manual(LEARNED)}<|end|>")
    with pytest.raises(RowError, match=r"no train set, so no row brings a privileged context. Set privileged_context"):
        OPSDTrainer(caller, args=OPSDConfig(**settings(tmp_path)), environment_factory=Owner)


def test_siblings_teach_behind_what_the_environment_added(tmp_path, caller, tokenizer):
    def right(completions, answer, **kwargs):
        return [float(graded_text(x) == y) for x, y in zip(completions, answer, strict=True)]

    how = {"environment_factory": Display, "reward_funcs": right}
    options = {"sibling_context": True, "num_generations": 2, "privileged_builder": "solution", "policy_coef": 0.0}
    trainer = agent(tmp_path, caller, how, dataset=rows(answer="5"), **options)
    trainer.args.temperature = 0.5
    batch = fixed_batch(trainer, [trainer.train_dataset[0]] * 4)
    text = tokenizer.decode(batch["teacher_prompt_ids"][0], skip_special_tokens=True)
    assert "3 twin back go" in text
    assert "a reference solution:\n5\n" in text


def test_the_figures_of_turns_are_logged_sampled_and_shown(tmp_path, caller):
    trainer = agent(tmp_path, caller, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    trainer.train()
    line = trainer.state.log_history[0]
    assert 2.0 < line["completions/turns"] <= 4.0
    turns = [line[f"distillation/turn_{i}/divergence"] for i in (1, 2, 3)]
    assert min(turns) > 0
    assert {f"distillation/turn_1/{x}" for x in ("entropy", "student_mass", "teacher_mass")} <= line.keys()
    sample = json.loads((tmp_path / "out/run_log/samples.jsonl").read_text().splitlines()[0])
    assert len(sample["turn"]) == len(sample["tokens"])
    for turn, value, token in zip(sample["turn"], sample["divergence"], sample["tokens"], strict=True):
        assert (turn == 0) == (value is None), token
    assert "".join(t for t, n in zip(sample["tokens"], sample["turn"], strict=True) if n == 0).startswith("<|tool|>")
    main(["report", str(tmp_path / "out")])
    page = (tmp_path / "out/report.html").read_text()
    assert "Divergence by turn" in page
    assert '"turn":[1,' in page


def test_without_tools_no_figure_of_turns_is_logged(tmp_path, student_path):
    trainer = opsd_trainer(tmp_path, student_path)
    trainer.train()
    assert not [name for name in trainer.state.log_history[0] if "turn" in name]


def test_the_depth_of_rollouts_grows_with_the_steps_and_evaluation_has_all_of_it(tmp_path, caller):
    trainer = agent(tmp_path, caller, tool_depth_start=1, tool_depth_steps=2, max_tool_calling_iterations=2)

    def deepest(step):
        trainer.state.global_step = step
        batch = fixed_batch(trainer)
        return int(turns_of(batch).max())

    assert [deepest(step) for step in (0, 1, 2, 3, 4, 5, 9)] == [1, 1, 2, 2, 3, 3, 3]
    assert trainer.train_metrics["tools/turns_allowed"] == [1, 1, 2, 2, 3, 3, 3]
    trainer.state.global_step = 0
    trainer.model.eval()
    assert int(turns_of(trainer.answer([trainer.train_dataset[i] for i in range(4)])).max()) == 3
    assert trainer.max_tool_calling_iterations == 2


def test_an_environment_with_its_own_reward_needs_no_reward_function(tmp_path, caller):
    class Paying(Calculator):
        def get_reward(self) -> float:
            return 0.25

    trainer = agent(tmp_path, caller, {"environment_factory": Paying}, num_generations=2)
    assert trainer.reward_func_names == ["Paying"]
    assert trainer.has_rewards
    trainer.train()
    assert trainer.state.log_history[0]["reward"] == 0.25
