"""The privileged-context test where an environment adds to the prompts and its tools are called."""

import pytest

from opd_trl.data.toy_calculator import Calculator, build_tokenizer
from opd_trl.preflight.context_check import probe_contexts
from opd_trl.preflight.context_draw import draw_contexts, teacher_prompts
from opd_trl.trainers.looks.rollouts import roll_out
from tests.trainers.calls import PROBLEMS, agent, rows, save_caller
from tests.trainers.test_agents import oracle


MANUALS = ["next:k back:y", "twin:q", "flip:w twin:z", "next:x"]


class Display(Calculator):
    """A calculator that begins each rollout with an observation."""

    def reset(self, keys, **row):
        super().reset(keys)
        return " go"


def test_rollouts_with_calls_are_read_again_under_other_contexts(tmp_path):
    dataset = rows().remove_columns("privileged_context").add_column("privileged_context", MANUALS)
    trainer = agent(tmp_path, save_caller(tmp_path), {"environment_factory": Display}, dataset=dataset)
    rollouts = roll_out(trainer, list(dataset))
    prompts = [row["prompt"] for row in rollouts[0].rows]
    assert all(prompt[-1]["content"].endswith(" go") for prompt in prompts)
    completions = trainer.last_completions[-len(PROBLEMS) :]
    figures = probe_contexts(trainer, rollouts, contexts=3)
    told = [[{"role": "system", "content": text}, *prompt] for text, prompt in zip(MANUALS, prompts, strict=True)]
    tokenizer, teacher = build_tokenizer(), trainer.teacher.module(trainer.model)
    for kind, read in (("own", told), ("empty", prompts)):
        expected = oracle(tokenizer, trainer.model, teacher, prompts, read, completions)
        assert getattr(figures, kind)[0] == pytest.approx(expected.item(), rel=1e-3, abs=1e-5)
    ids = teacher_prompts(trainer, rollouts[0], draw_contexts(trainer, rollouts, 3, 0))
    assert [tokenizer.decode(x.ids) for x in ids.empty] == [
        f"<|system|>press <|end|><|user|>{prompt[-1]['content']}<|end|><|assistant|>" for prompt in prompts
    ]
