"""The report of a run log that a trainer has written."""

import json

from tests.trainers.build import opsd_trainer


def test_a_run_of_two_steps_is_reported_as_its_trainer_logged_it(tmp_path, student_path, report):
    trainer = opsd_trainer(tmp_path, student_path, max_steps=2, eval_strategy="no")
    trainer.train()
    status, out, _ = report(tmp_path / "out", "--json", tmp_path / "figures.json")
    said = f"{tmp_path.name}/out: finished at step 2; too short to judge: 2 log lines, and the rules look at 5"
    assert (status, out.splitlines()[0]) == (0, said)
    (run,) = json.loads((tmp_path / "figures.json").read_text())["runs"]
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert run["last"]["loss"] == {"step": 2, "value": logged[-1]["loss"]}
    assert run["trainer"] == "OPSDTrainer"
    assert run["teachers"] == {"": "the student (base)"}
    assert run["differs"]["loss_top_k"]["value"] == 5
    assert sum(part["share"] for part in run["cost"]["phases"].values()) > 0.99
    page = (tmp_path / "out" / "report.html").read_text()
    assert '"samples":[{"step":1,' in page
    assert "Answer with b." in page


def test_every_metric_that_a_trainer_logs_of_ours_has_a_chart_outside_other(tmp_path, student_path):
    from opd_trl.reports.charts import drawn_sections
    from opd_trl.reports.reading import read_run

    opsd_trainer(tmp_path, student_path, max_steps=1).train()
    logged = read_run(tmp_path / "out").series
    other = [
        name
        for section, charts in drawn_sections(logged)
        if section.folded
        for drawn in charts
        for name in drawn.metrics
    ]
    ours = ("distillation/", "support/", "teacher/", "time/", "completions/repetition", "entropy")
    assert [name for name in other if name.startswith(ours)] == []
