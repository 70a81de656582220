import json

import pytest
from internalise_reach import first_tokens, histories

from tests import tiny


def test_the_first_token_is_the_teachers_and_its_mass_is_that_of_the_bare_student(tmp_path):
    rows = first_tokens(tiny.save(tmp_path, max_position_embeddings=1024))
    assert [row[0] for row in rows] == ["pirate", "json", "bullets"]
    for _, token, theirs, mine, largest, seen in rows:
        assert token.endswith("of 48)")
        assert 1 / 103 < theirs <= 1
        assert 0 < float(mine) <= float(largest) < 1
        assert 0 <= seen <= 1


def test_the_first_and_the_last_logged_step_are_averaged_over_the_seeds(tmp_path):
    for seed, last in ((0, 0.5), (1, 0.7)):
        folder = tmp_path / f"json-jsd-{seed}"
        folder.mkdir()
        steps = [
            {"loss": 1, "support/student_mass": mass, "support/teacher_mass": 0.8, "entropy": 2.0}
            for mass in (0.9, 0.1, last)
        ]
        text = "".join(json.dumps(step) + "\n" for step in [*steps, {"train_runtime": 1}])
        (folder / "history.jsonl").write_text(text)
    (row,) = histories(tmp_path)
    assert row == ["json", "jsd", 2, "0.90 -> 0.60", "0.80 -> 0.80", "2.00 -> 2.00", "1.00 -> 1.00"]


@pytest.mark.parametrize("name", ["json-teacher-0", "other-jsd-0"])
def test_a_folder_of_another_name_is_no_run(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "history.jsonl").write_text("{}")
    assert histories(tmp_path) == []
