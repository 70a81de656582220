"""The studies of `opd-trl reproduce` as they stand in the documentation.

    opd-trl reproduce mechanisms                                runs the first; sorting and larger are the others
    python benchmarks/mechanisms.py --keep mechanisms runs/mechanisms    its lines into benchmarks/results/
    python benchmarks/mechanisms.py --table                     Markdown, from the lines
    python benchmarks/mechanisms.py --write docs/evidence.md    the same, between the marks of that page
    python benchmarks/mechanisms.py --plot docs/images          a picture of each claim, and of the trials

`results/mechanisms_first.jsonl` holds the first study, all arms at 4e-3: its tables stand in for claims of which no
arm has been run at its own rate yet.
"""

import argparse
from pathlib import Path

from lines import FOLDER, Line, read_lines, write_between_marks

from opd_trl.data.files import write_jsonl
from opd_trl.reproduce import study
from opd_trl.reproduce.confusion import Results, Run, looked_at
from opd_trl.reproduce.pictures import draw_claim, draw_trials
from opd_trl.reproduce.settings import Settings, read_settings
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
MAIN, FRESH = "mechanisms", ("sorting", "larger")
TITLES = {MAIN: "sums, 0.45M", "sorting": "sorting, 0.45M", "larger": "sums, 2.1M"}
FIRST = FOLDER / "mechanisms_first.jsonl"


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


def text(studies: dict[str, list[Line]], first: list[Line]) -> str:
    """All of it, as it stands on the page."""
    settings, lines = settings_of(MAIN), studies[MAIN]
    results, old = Results.of(lines), Results.of(first)
    parts = [losses_text(studies)]
    for name, found in studies.items():
        parts.append(rates_text(settings_of(name), found, title=f"Learning rates: {TITLES[name]}"))
    parts.append(checks_text(settings, lines))
    for claim in settings.claims.values():
        is_new = any(name in results.arms for name in claim.arms)
        table = claim_text(settings, claim, results if is_new else old)
        note = "" if is_new else "\n*From the first study: every arm at 4e-3.*\n"
        parts.append(f"{table}{note}\n![{claim.title}](images/evidence_{claim.name}.png)\n")
    fresh = [run for name in FRESH for run in runs_of(name, studies)]
    seen = runs_of(MAIN, studies)
    parts += [
        trial_text(settings, fresh, title="What the trial had said: runs that nothing was chosen on"),
        "![What the trial had said](images/evidence_trials.png)\n",
        trial_text(settings, seen, title="The same on the first task, where the rule was chosen"),
        static_text(settings, results),
        monitor_text(settings, results),
        conditions_text([line for found in studies.values() for line in found]),
    ]
    return "\n".join(part for part in parts if part).strip()


def runs_of(name: str, studies: dict[str, list[Line]]) -> list[Run]:
    """The runs of a study that a trial had looked at."""
    return looked_at(settings_of(name), Results.of(studies[name]))


def losses_text(studies: dict[str, list[Line]]) -> str:
    """Every form of the loss at its own best rate, study by study: the one table."""
    rows: dict[str, dict[str, str]] = {}
    notes = []
    for name, lines in studies.items():
        settings, results = settings_of(name), Results.of(lines)
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


def plot(studies: dict[str, list[Line]], first: list[Line], folder: Path) -> None:
    """A picture of each claim, and one of the trials."""
    settings, lines = settings_of(MAIN), studies[MAIN]
    there = Results.of(lines).arms
    for name, claim in settings.claims.items():
        draw_claim(settings, lines if set(there) & set(claim.arms) else first, name, folder / f"evidence_{name}.png")
    runs = [run for name in FRESH for run in runs_of(name, studies)]
    draw_trials(settings, runs, folder / "evidence_trials.png")


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
    studies, first = {name: read_lines(results_of(name)) for name in (MAIN, *FRESH)}, read_lines(FIRST)
    if args.table:
        print(text(studies, first))
    if args.write:
        write_between_marks(args.write, text(studies, first), "mechanisms")
    if args.plot:
        plot(studies, first, args.plot)


if __name__ == "__main__":
    main()
