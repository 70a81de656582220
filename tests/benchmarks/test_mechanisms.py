"""The studies in the documentation: the page shows the lines that are kept here."""

from collections import defaultdict

import mechanisms
import pytest

from opd_trl.preflight.trial.verdict import ENDED_BETTER
from opd_trl.reproduce.confusion import CAME_TO, HELPED, Score
from opd_trl.reproduce.study import all_jobs, key_of

from .lines import written


@pytest.fixture(scope="module")
def studies():
    return {name: mechanisms.read_lines(mechanisms.results_of(name)) for name in mechanisms.STUDIES}


@pytest.mark.parametrize("name", mechanisms.STUDIES)
def test_every_line_is_of_the_recipe_and_its_arms_have_the_same_seeds(studies, name):
    settings, lines = mechanisms.settings_of(name), studies[name]
    jobs = all_jobs(settings, range(mechanisms.SEEDS), list(settings.arms), lines)
    keys = [key_of(line) for line in lines]
    assert len(keys) == len(set(keys))
    assert set(keys) <= {job.key for job in jobs}
    seeds = defaultdict(set)
    for line in lines:
        if line["kind"] == "arm":
            seeds[line["name"]].add(line["seed"])
    assert len({frozenset(x) for x in seeds.values()}) <= 1


def test_the_page_shows_the_lines_that_are_kept_here(studies):
    assert written("evidence.md", "mechanisms") == mechanisms.text(studies), (
        "python benchmarks/mechanisms.py --write docs/evidence.md --plot docs/images"
    )


def test_the_command_prints_how_often_its_word_was_right_on_runs_that_nothing_was_chosen_on(studies):
    counts = Score.of(mechanisms.fresh(studies), "20").counts
    for word, (better, total) in ENDED_BETTER.items():
        assert (counts[word, HELPED], sum(counts[word, x] for x in CAME_TO)) == (better, total)


def test_a_study_that_has_not_run_is_not_kept(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no run of this study\. Run opd-trl reproduce sorting"):
        mechanisms.keep("sorting", tmp_path)
