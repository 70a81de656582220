"""The privileged-context test with a teacher behind HTTP."""

import pytest

from opd_trl.preflight.context_check import probe_contexts
from opd_trl.trainers.looks.rollouts import Rollout, roll_out
from tests import tiny
from tests.trainers.build import opd_trainer


def test_a_server_that_sends_hidden_states_is_tested_and_one_that_sends_top_k_is_refused(
    tmp_path, student_path, served_path, ours, plain
):
    dataset = tiny.questions(
        6, privileged_context=[f"The answer is {i * 7} or {'xyz'[i % 3] * i}b." for i in range(6)]
    )
    local, served, top_k = (
        opd_trainer(tmp_path, student_path, teacher, dataset=dataset, loss_support="teacher")
        for teacher in (served_path, ours, plain)
    )
    rollouts = roll_out(local, list(dataset))

    def probe(trainer):
        own = [Rollout(x.rows, x.batch | trainer.score_ahead(x.batch)) for x in rollouts]
        return probe_contexts(trainer, own)

    expected, figures = probe(local), probe(served)
    assert figures.share.value == pytest.approx(expected.share.value, rel=1e-3)
    assert figures.prompt_gain.value == pytest.approx(expected.prompt_gain.value, rel=1e-3)
    with pytest.raises(ValueError, match="this check reads the whole distribution"):
        probe(top_k)
