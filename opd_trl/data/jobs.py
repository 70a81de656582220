"""The work behind the commands of `opd-trl data`: each takes its arguments and a progress bar, and writes files."""

import argparse
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from ..evaluation import math_accuracy
from . import traces
from .adapters import ADAPTERS, RejectedRow, mapped
from .decontaminate import Contamination, evaluation_prompts
from .files import DataError, Row, check_free, looks_local, write_jsonl
from .filtering import TraceFilter, filter_rows
from .outputs import Output, check_jsonl, report_file, write_report
from .prepare import prepare
from .sources import load_named, read_file, with_columns


#: Columns of ours that a file is read by where `--columns` does not say.
OURS = ("prompt", "answer", "solution", "privileged_context")
#: Title and number of rows, where it is known -> a progress bar, which yields what takes the number done.
Bar = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
#: What was read, kept and rejected, and the file that says so.
Report = tuple[dict[str, Any], Path]


def prepare_rows(args: argparse.Namespace, bar: Bar) -> Report:
    """Read a data set or a file, shape its rows, leave out evaluation rows, split, write."""
    output = output_of(args)
    rows, to_row, settings = source(args)
    evaluation = against(args.decontaminate, args.ngram) if args.decontaminate else None
    with bar("reading", total_of(rows)) as advance:
        made = prepare(rows, to_row, box_column=args.require_box, evaluation=evaluation, progress=advance)
    settings |= {"require_box": args.require_box, "decontaminate": args.decontaminate, "ngram": args.ngram}
    return output.write(made.rows, made.report() | {"settings": settings}), output.report_file


def draw_procedural(args: argparse.Namespace) -> Report:
    """Draw rows of a reasoning-gym task, split them, and write each part."""
    from .procedural import generate

    output = output_of(args)
    rows, duplicates = generate(args.task, count=args.count, seed=args.seed, options=args.options)
    settings = {"task": args.task, "count": args.count, "seed": args.seed, "options": args.options}
    rejected = {"duplicate prompt": duplicates} if duplicates else {}
    report = {"read": len(rows) + duplicates, "kept": len(rows), "rejected": rejected, "settings": settings}
    return output.write(rows, report), output.report_file


def write_traces(args: argparse.Namespace, bar: Bar) -> dict[str, Any]:
    """Let a model write completions to the prompts of a file; return the report."""
    check_file(args)
    check_numbers(args)
    if looks_local(args.model) and not Path(args.model).expanduser().exists():
        raise DataError(f"--model {args.model} does not exist (looked in {Path.cwd()}). Give a folder or a hub id.")
    rows = list(read_file(args.data))[: args.max_rows]
    settings = traces.TraceSettings(
        **{name: getattr(args, name) for name in SAMPLING},
        privileged=privileged(args),
        template_kwargs=args.chat_template_kwargs or None,
        data=traces.digest(rows),
    )
    prompts = traces.check_rows(rows, settings)
    sampler = load_sampler(args, settings.template_kwargs)
    with bar("writing", len(rows) * args.samples) as advance:
        report = traces.write_traces(
            rows, prompts, sampler, args.output, settings, restart=args.overwrite, progress=advance
        )
    write_report(args.output, report)
    return report


def load_sampler(args: argparse.Namespace, template_kwargs: dict[str, Any] | None) -> Callable:
    """The function that writes completions; raises DataError where the model cannot be loaded or cannot write."""
    from ..models.loading import load_model, load_tokenizer
    from ..models.sampling import Sampling
    from ..models.transformers_engine import make_sampler

    sampling = Sampling(args.temperature, args.top_p, 0, args.max_new_tokens)
    try:
        tokenizer = load_tokenizer(args.model, revision=args.revision)
        model = load_model(args.model, revision=args.revision, dtype=args.dtype, device=args.device)
        return make_sampler(model, tokenizer, sampling, template_kwargs=template_kwargs)
    except ValueError as error:
        raise DataError(str(error)) from error


def filter_traces(args: argparse.Namespace, bar: Bar) -> Report:
    """Leave out unfit traces, count the reasons, and write the others."""
    check_file(args)
    names = ("line_chars", "line_repeats", "block_chars", "block_repeats", "max_chars")
    rule = TraceFilter(need_box=not args.no_box, **{name: getattr(args, name) for name in names})
    rows = read_file(args.source)
    with bar("filtering", total_of(rows)) as advance:
        kept, report = filter_rows(rows, rule, judge=judge() if args.check_answer else None, progress=advance)
    write_jsonl(args.output, kept)
    settings = {"source": str(args.source), "check_answer": args.check_answer, **vars(rule)}
    report |= {"files": {args.output.name: len(kept)}, "settings": settings}
    write_report(args.output, report)
    return report, report_file(args.output)


MAP_COLUMNS = "Map your names with --columns, e.g. prompt=question,answer=label."
PREPARE_FIRST = "Make a file with that column with `opd-trl data prepare`."
TEACHER_VIEW = {"text": "context", "file": "context_file", "template": "template"}
SAMPLING = ("model", "revision", "temperature", "top_p", "max_new_tokens", "samples", "batch_size", "seed")


def source(args: argparse.Namespace) -> tuple[Iterable[Row], Callable[[Row], Row], dict[str, Any]]:
    """The rows that are asked for, how each becomes one of ours, and what to note about them.

    Raises DataError for neither a name nor a file, and for options that do not go together.
    """
    if args.source in ADAPTERS:
        if args.columns is not None:
            raise DataError(f"--columns is for files: {args.source} has its own adapter. Leave it out.")
        where = {name: getattr(args, name) for name in ("split", "config", "revision", "path")}
        return load_named(args.source, **where), ADAPTERS[args.source].to_row, {"source": args.source, **where}
    for name in ("split", "config", "revision", "path"):
        if getattr(args, name) is not None:
            raise DataError(
                f"--{name} is for data sets by name, and {args.source!r} is none of {', '.join(ADAPTERS)}."
            )
    if not Path(args.source).exists() and not looks_local(args.source):
        load_named(args.source)  # says which names there are
    path = Path(args.source)
    chosen = args.columns
    if chosen is None:
        first = next(iter(read_file(path)), None)
        if first is None:
            raise DataError(f"{args.source} has no rows. Put one example into each line or row.")
        chosen = {name: name for name in OURS if name in first}
    # The first row names the columns where --columns does not: all rows must have them, and `prompt` at least.
    wanted = chosen.values() if args.columns else {"prompt": None, **chosen}
    checked = with_columns(read_file(path), wanted, source=args.source, remedy=MAP_COLUMNS)
    return checked, mapped(chosen), {"source": args.source, "columns": chosen}


def against(names: list[str], ngram: int) -> Contamination:
    """The prompts of evaluation sets that training rows are compared with; raises DataError for too small an n."""
    prompts: list[tuple[str | list, str]] = []
    for name in names:
        known, _, split = name.partition(":")
        if known in ADAPTERS:
            rows: Iterable[Row] = shaped(load_named(known, split=split or None), ADAPTERS[known].to_row)
        else:
            rows = with_columns(read_file(Path(name)), ["prompt"], source=name, remedy=PREPARE_FIRST)
        prompts += evaluation_prompts(rows, name)
    try:
        return Contamination(prompts, ngram=ngram)
    except ValueError as error:
        raise DataError(f"--ngram {ngram}: {error}") from error


def shaped(rows: Iterable[Row], to_row: Callable[[Row], Row]) -> Iterator[Row]:
    """The rows as an adapter shapes them; those that it rejects are left out."""
    for row in rows:
        with suppress(RejectedRow):
            yield to_row(row)


def privileged(args: argparse.Namespace) -> dict[str, Any] | None:
    """Arguments of `TeacherView`, or None where no privileged context is asked for."""
    given = {name: getattr(args, f"privileged_{key}") for name, key in TEACHER_VIEW.items()}
    if args.privileged_builder is None and not any(given.values()):
        return None
    return {
        "builder": args.privileged_builder or "system_prompt",
        "column": args.privileged_context_column,
        **{name: value for name, value in given.items() if value is not None},
    }


def output_of(args: argparse.Namespace) -> Output:
    """Where the rows of `prepare` and `procedural` go; raises DataError where a file is in the way."""
    options = {name: getattr(args, name) for name in ("salt", "max_rows", "instruction")}
    return Output.checked(args.output, args.parts, overwrite=args.overwrite, **options)


def check_file(args: argparse.Namespace) -> None:
    """Raise DataError where `--output` of `traces` or `filter` is not a free `.jsonl` file."""
    check_jsonl(args.output)
    check_free(args.output, report_file(args.output), overwrite=args.overwrite)


def check_numbers(args: argparse.Namespace) -> None:
    """Raise DataError for sampling settings that mean nothing."""
    for name in ("samples", "batch_size", "max_new_tokens"):
        if getattr(args, name) < 1:
            raise DataError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}.")
    if args.temperature < 0 or not 0 < args.top_p <= 1:
        raise DataError(
            "--temperature must be 0 or more and --top-p above 0 and up to 1, got "
            f"{args.temperature} and {args.top_p}."
        )


def judge() -> Callable:
    """The function that tells right from wrong answers; raises DataError where math-verify is missing."""
    if importlib.util.find_spec("math_verify") is None:
        raise DataError("--check-answer needs math-verify: pip install 'opd_trl[math]' (or pip install math-verify).")
    return math_accuracy


def total_of(rows: Iterable[Row]) -> int | None:
    """How many rows there are, where that is known."""
    return len(rows) if hasattr(rows, "__len__") else None
