"""A served teacher reads whole rollouts, the tools' answers included: its loss is that of one in the process."""

import torch

from opd_trl.data.toy_calculator import Calculator
from tests.serving.server import serve
from tests.trainers.build import fixed_batch, opd_trainer
from tests.trainers.calls import FULL, rows, save_caller


def test_a_served_teacher_scores_a_rollout_with_calls_as_one_in_the_process_does(tmp_path):
    path = save_caller(tmp_path / "caller")

    def trainer(teacher, **options):
        how = {"environment_factory": Calculator}
        return opd_trainer(tmp_path, path, teacher, dataset=rows(), trainer_options=how, **FULL | options)

    local = trainer(path)
    batch = fixed_batch(local)
    assert 0 < batch["loss_mask"].sum() < batch["completion_mask"].sum()
    expected = local._compute_loss(local.model.train(), batch).detach()
    assert expected > 0.01
    with serve(path) as url:
        served = trainer(None, teacher_server_url=url)
        names = [name for name in batch if "teacher" not in name or name.startswith("teacher_prompt")]
        bare = {name: batch[name] for name in names}
        found = served._compute_loss(served.model.eval(), bare | served.score_ahead(bare)).detach()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
