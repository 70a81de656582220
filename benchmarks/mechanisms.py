"""The study of `opd-trl reproduce mechanisms` as it stands in the documentation.

    opd-trl reproduce mechanisms                                runs it
    python benchmarks/mechanisms.py --keep runs/mechanisms      its lines into benchmarks/results/
    python benchmarks/mechanisms.py --table                     Markdown, from the lines
    python benchmarks/mechanisms.py --write docs/evidence.md    the same, between the marks of that page
    python benchmarks/mechanisms.py --plot docs/images          a picture of each claim, and of the pre-flight

`results/mechanisms_first_look.jsonl` holds what the pre-flight of commit 9473a92 said of the same runs, before its
rules were changed.
"""

import argparse
from pathlib import Path

from lines import FOLDER, Line, read_lines, write_between_marks

from opd_trl.data.files import write_jsonl
from opd_trl.reproduce import study
from opd_trl.reproduce.confusion import Results, by_finding, forecasts
from opd_trl.reproduce.pictures import draw_claim, draw_confusion
from opd_trl.reproduce.settings import Settings, read_settings
from opd_trl.reproduce.tables import checks_text, claim_text, conditions_text, markdown, monitor_text, preflight_text
from opd_trl.scripts.recipe_files import find_recipe


RESULTS, FIRST_LOOK = FOLDER / "mechanisms.jsonl", FOLDER / "mechanisms_first_look.jsonl"
SEEDS = 5
# Seeds whose results were seen before the rules of the pre-flight were changed, and those that were not.
SEEN, FRESH = range(3), range(3, SEEDS)


def keep(home: Path, settings: Settings) -> None:
    """Store the lines of a finished study.

    Raises:
        SystemExit: steps are missing.
    """
    jobs = study.all_jobs(settings, range(SEEDS), list(settings.arms))
    lines = study.matching(study.read_lines(home), jobs)
    if len(lines) < len(jobs):
        raise SystemExit(f"{home} has {len(lines)} of {len(jobs)} steps. Run opd-trl reproduce mechanisms again.")
    write_jsonl(RESULTS, lines)


def text(settings: Settings, lines: list[Line]) -> str:
    """All of it, as it stands on the page."""
    results = Results.of(lines)
    parts = [checks_text(settings, lines)]
    for claim in settings.claims.values():
        parts.append(claim_text(settings, claim, results) + f"\n![{claim.title}](images/evidence_{claim.name}.png)\n")
    parts += [preflight_text(settings, results), "![What the pre-flight had said](images/evidence_preflight.png)\n"]
    parts += [
        looks_text(settings, lines, read_lines(FIRST_LOOK)),
        monitor_text(settings, results),
        conditions_text(lines),
    ]
    return "\n".join(parts).strip()


def looks_text(settings: Settings, lines: list[Line], first: list[Line]) -> str:
    """The pre-flight before and after its rules were changed, on seeds that were seen and on fresh ones."""
    others = [line for line in lines if line["kind"] != "forecast"]
    rows, findings = [], {}
    for rules, said in (("as it was", first), ("as it is", [x for x in lines if x["kind"] == "forecast"])):
        for word, seeds in (("seen", SEEN), ("fresh", FRESH)):
            found = [x for x in forecasts(settings, Results.of([*others, *said])) if x.seed in seeds]
            right, doubted = sum(x.is_right for x in found), [x for x in found if x.doubts]
            failed = sum(not x.worked for x in found)
            caught = sum(not x.worked for x in doubted)
            rows.append(
                {
                    "rules": rules,
                    "seeds": f"{seeds[0]} to {seeds[-1]}, {word}",
                    "failed": f"{failed} of {len(found)} ({failed / len(found):.0%})",
                    "right": f"{right} of {len(found)} ({right / len(found):.0%})",
                    "failed of the doubted": f"{caught} of {len(doubted)}",
                    "doubted of the failed": f"{caught} of {failed}",
                }
            )
            if rules == "as it is":
                for name, (count, wrong) in by_finding(found).items():
                    findings.setdefault(name, {"finding": name})[f"seeds {word}"] = f"{wrong} of {count}"
    return f"{markdown(rows)}\nFailed of the doubted, finding by finding, as it is:\n\n{markdown(findings.values())}"


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="store the lines of a finished study")
    parser.add_argument("--table", action="store_true", help="print Markdown")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write it between the marks of a page")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw the pictures")
    args = parser.parse_args()
    settings = read_settings(find_recipe("reproduce/mechanisms"))
    if args.keep:
        keep(args.keep, settings)
    lines = read_lines(RESULTS)
    if args.table:
        print(text(settings, lines))
    if args.write:
        write_between_marks(args.write, text(settings, lines), "mechanisms")
    if args.plot:
        for name in settings.claims:
            draw_claim(settings, lines, name, args.plot / f"evidence_{name}.png")
        draw_confusion(settings, lines, args.plot / "evidence_preflight.png")


if __name__ == "__main__":
    main()
