"""The studies of `opd-trl reproduce` as they stand in the documentation.

    opd-trl reproduce mechanisms                                one of them; teachers, sorting, larger: the others
    python benchmarks/mechanisms.py --keep mechanisms runs/mechanisms    its lines into benchmarks/results/
    python benchmarks/mechanisms.py --table                     Markdown, from the lines
    python benchmarks/mechanisms.py --write docs/evidence.md    the same, between the marks of that page
    python benchmarks/mechanisms.py --plot docs/images          a picture of each claim, and of the trials

The lines of a study that are kept are in results/STUDY.jsonl.
"""

import argparse
import dataclasses
from pathlib import Path

from lines import FOLDER, Line, read_lines, write_between_marks

from opd_trl.data.files import write_jsonl
from opd_trl.reproduce import study
from opd_trl.reproduce.confusion import Results, Run, looked_at
from opd_trl.reproduce.pictures import draw_claim, draw_trials
from opd_trl.reproduce.settings import Claim, Settings, read_settings
from opd_trl.reproduce.tables import (
    checks_text,
    claim_text,
    conditions_text,
    helped,
    interval,
    markdown,
    mean,
    monitor_text,
    rate_text,
    rates_text,
    static_text,
    trial_text,
)
from opd_trl.scripts.recipe_files import find_recipe


SEEDS = 5
MAIN = "mechanisms"
#: Nothing of the forecast was chosen on these.
FRESH = ("teachers", "sorting", "larger")
STUDIES = (MAIN, *FRESH)
#: Studies of forms of the loss -> task and size; studies of claims -> what they are about.
TITLES = {MAIN: "sums, 0.45M", "sorting": "sorting, 0.45M", "larger": "sums, 2.1M"}
CLAIMED = {MAIN: "forms of the loss", "teachers": "teachers and contexts"}


def settings_of(name: str) -> Settings:
    """The settings of a study."""
    return read_settings(find_recipe("reproduce/mechanisms"), section=None if name == MAIN else name)


def results_of(name: str) -> Path:
    """Where the lines of a study are kept."""
    return FOLDER / f"{name}.jsonl"


def keep(name: str, home: Path) -> None:
    """Store the lines of a study, as far as it has run.

    Raises:
        SystemExit: nothing has run under the settings of the recipe.
    """
    settings, lines = settings_of(name), study.read_lines(home)
    jobs = study.all_jobs(settings, range(SEEDS), list(settings.arms), lines)
    found = study.matching(lines, jobs)
    if not any(line["kind"] in ("arm", "rate") for line in found):
        raise SystemExit(f"{home} holds no run of this study. Run opd-trl reproduce {name}.")
    write_jsonl(results_of(name), found)


def text(studies: dict[str, list[Line]]) -> str:
    """All of it, as it stands on the page."""
    parts = [losses_text(studies)]
    for name, title in (TITLES | {"teachers": CLAIMED["teachers"]}).items():
        parts.append(rates_text(settings_of(name), studies[name], title=f"Learning rates: {title}"))
    for name, title in CLAIMED.items():
        parts.append(checks_text(settings_of(name), studies[name], title=f"What held: {title}"))
    for name, claim in claims(studies):
        table = claim_text(settings_of(name), claim, Results.of(studies[name]))
        parts.append(f"{table}\n![{claim.title}](images/evidence_{claim.name}.png)\n")
    parts += [
        trial_text(
            settings_of(MAIN), fresh(studies), title="What the trial had said: runs that nothing was chosen on"
        ),
        "![What the trial had said](images/evidence_trials.png)\n",
        trial_text(
            settings_of(MAIN), runs_of(MAIN, studies), title="The same on the first task, where the rule was chosen"
        ),
        static_text(settings_of(MAIN), Results.of(studies[MAIN])),
        monitor_text(settings_of(MAIN), Results.of(studies[MAIN])),
        conditions_text([line for found in studies.values() for line in found]),
    ]
    return "\n".join(part for part in parts if part).strip()


def claims(studies: dict[str, list[Line]]) -> list[tuple[str, Claim]]:
    """The claims of which an arm has run, each with the study that it belongs to."""
    return [
        (name, claim)
        for name in CLAIMED
        for claim in settings_of(name).claims.values()
        if set(claim.arms) & set(Results.of(studies[name]).arms)
    ]


def runs_of(name: str, studies: dict[str, list[Line]]) -> list[Run]:
    """The runs of a study that a trial had looked at."""
    return looked_at(settings_of(name), Results.of(studies[name]))


def fresh(studies: dict[str, list[Line]]) -> list[Run]:
    """The runs that a trial had looked at, of studies on which nothing of its rule was chosen."""
    return [run for name in FRESH for run in runs_of(name, studies)]


def losses_text(studies: dict[str, list[Line]]) -> str:
    """Every form of the loss at its own best rate, study by study: the one table."""
    rows: dict[str, dict[str, str]] = {}
    notes = []
    for name in TITLES:
        settings, results = settings_of(name), Results.of(studies[name])
        arms = [arm for arm in settings.arms.values() if arm.student == "weak" and results.runs(arm)]
        for arm in arms:
            row = rows.setdefault(arm.name, {"": arm.label})
            row[TITLES[name]] = f"{interval(results.after(arm, 'accuracy'))} at {rate_text(results.rates[arm.name])}"
            row[f"{TITLES[name]}: helped"] = helped(arm, results)
        for arm in arms[:1]:  # they share student and teacher
            before, teacher = (mean(values(arm, "accuracy")) for values in (results.before, results.teacher))
            seeds = len(results.runs(arm))
            notes.append(f"{TITLES[name]}: {before} before, teacher {teacher}, {seeds} seeds")
    told = "Right answers on held-out problems at T = 1 after training, with the interval over seeds, and the rate. "
    return f"### Every form of the loss at its own best rate\n\n{told}{'; '.join(notes)}.\n\n{markdown(rows.values())}"


def plot(studies: dict[str, list[Line]], folder: Path) -> None:
    """A picture of each claim, and one of the trials."""
    for name, claim in claims(studies):
        draw_claim(settings_of(name), studies[name], claim.name, folder / f"evidence_{claim.name}.png")
    arms = {name: arm for study in STUDIES for name, arm in settings_of(study).arms.items()}
    everything = dataclasses.replace(settings_of(MAIN), arms=arms)
    draw_trials(everything, fresh(studies), folder / "evidence_trials.png")


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--keep", nargs=2, metavar=("STUDY", "FOLDER"), help="store the lines of a study")
    parser.add_argument("--table", action="store_true", help="print Markdown")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write it between the marks of a page")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw the pictures")
    args = parser.parse_args()
    if args.keep:
        keep(args.keep[0], Path(args.keep[1]))
    studies = {name: read_lines(results_of(name)) for name in STUDIES}
    if args.table:
        print(text(studies))
    if args.write:
        write_between_marks(args.write, text(studies), "mechanisms")
    if args.plot:
        plot(studies, args.plot)


if __name__ == "__main__":
    main()
