"""docs/security.md names the attacks that tests play, and nothing else."""

from tests.docs import attacks


def test_the_table_of_faults_is_what_the_tests_play():
    page = attacks.PAGE.read_text(encoding="utf-8")
    assert page == attacks.written(page), "run python -m tests.docs.attacks"


def test_every_attack_names_a_known_area():
    assert {area for area, *_ in attacks.attacks()} <= attacks.AREAS.keys()
