import math

from tests.trainers.build import fixed_batch, opd_trainer


def test_a_uniform_teacher_gives_the_divergence_to_the_uniform_distribution(tmp_path, student_path):
    trainer = opd_trainer(tmp_path, student_path, "uniform", loss_support="full", max_steps=1)
    scores = trainer.teacher_scores(trainer.model, fixed_batch(trainer))[""]
    assert scores.hidden_states.abs().max() == 0
    trainer.train()
    entropy = trainer.state.log_history[0]["entropy"]
    divergence = trainer.state.log_history[0]["distillation/per_token_divergence"]
    assert math.isclose(divergence, math.log(trainer.num_rows) - entropy, rel_tol=1e-3)
