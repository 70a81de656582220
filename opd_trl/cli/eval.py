"""`opd-trl eval`: measure a model, with seeds, intervals and a protocol that is pinned."""

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..scripts.consoles import plain_console
from .terminal import command_parser, progress, refused


DESCRIPTION = """\
Measure a model. Three suites:

  math       are boxed answers right? avg@n, pass@k, majority, by math-verify with a time limit for each answer
  rules      do answers follow a rule (--rule), and where they should not (--elsewhere)? IFEval's instructions too
  retention  what is left of what the model could do: perplexity of plain text, short questions

How answers are asked for stands in a protocol: a YAML file, printed with the result and hashed. Samples go to
samples.jsonl in --output as they come; the same command goes on after a kill. result.json holds figures with 95 %
intervals (bootstrap over problems), protocol, versions, commit, machine and date.

Examples
  # mathematics as the paper evaluates it, with vLLM
  opd-trl eval --model Qwen/Qwen3-1.7B --suite math --data math500 --engine vllm --output runs/eval/before
  # the same for an adapter, and the paired difference
  opd-trl eval --model Qwen/Qwen3-1.7B --adapter runs/opd --suite math --data math500 --engine vllm \\
      --output runs/eval/after --compare runs/eval/before
  # does a rule hold on held-out prompts, and does it leak elsewhere?
  opd-trl eval --model my_model --suite rules --rule one_sentence:Arr, --data test.jsonl --elsewhere other.jsonl
  # what has training cost? before, then after
  opd-trl eval --model my_model --suite retention --output runs/eval/before
  opd-trl eval --model my_model --adapter runs/opsd --suite retention --compare runs/eval/before
"""

RULES = """\
rules (--rule, --leak-rule; collapsed or empty text follows none)
  one_sentence:START          one sentence that starts with START
  json, json:KEY,KEY          one JSON object and nothing else; of exactly these keys
  bullets, bullets:N          a list of bullets, nothing else
  numbered, numbered:N        a list numbered from 1
  starts_with:TEXT, ends_with:TEXT
  max_words:N, min_words:N
  uppercase, lowercase
  language:CODE               en, de, fr, zh-cn, ... (needs langdetect)
  refusal, no_refusal         judged by the words of the first 200 characters
  regex:PATTERN               as strict as you write it

Exit status: 0 done, 2 bad input, 130 interrupted (the same command goes on).
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of `opd-trl eval`."""
    parser = command_parser("opd-trl eval", DESCRIPTION, RULES)
    add = parser.add_argument
    add("--model", help="folder, also of a LoRA adapter, or hub id")
    add("--adapter", help="folder of a LoRA adapter on top of it")
    add("--suite", choices=("math", "rules", "retention"), help="what is measured")
    add(
        "--data",
        help="JSONL, Parquet, CSV or JSON file of `prompt` (and `answer`), or a name or hub id of "
        "`opd-trl data list`; for retention the protocol's own questions by default",
    )
    add("--protocol", help="name or YAML file; default: math_paper, rules, retention. Also: math_short, math_smoke")
    add("--output", help="folder of the result; default: runs/eval/SUITE_MODEL")
    add("--compare", nargs="+", default=[], metavar="DIR", help="outputs of other evaluations: paired differences")
    add("--n", type=int, help="samples of each problem and seed; default: the protocol's")
    add("--seeds", nargs="+", help="seeds of sampling, as 0,1,2; default: the protocol's")
    add("--max-new-tokens", type=int, help="longest answer; default: the protocol's")
    add("--limit", type=int, help="only the first so many problems of --data; default: all")
    add("--rule", action="append", default=[], help="a rule, see below; repeat it for several that all must hold")
    add("--elsewhere", help="file of prompts whose answers should not follow the rule: leakage")
    add("--leak-rule", action="append", default=[], help="what counts as leaking; default: the rules themselves")
    add("--context", help="text or .json of messages that the model reads first, as a teacher would; default: none")
    add("--engine", choices=("transformers", "vllm"), default="transformers", help="default: %(default)s")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="default: as saved")
    add("--batch-size", type=int, help="answers at once; default: 32, for vllm 512")
    add("--json", action="store_true", help="print result.json in place of the card")
    return parser


def main(argv: list[str]) -> int:
    """Run `opd-trl eval` and return its exit status."""
    args = make_parser().parse_args(argv)
    from ..suites.evaluate import evaluate

    try:
        result = evaluate(args, bar=progress, say=lambda line: print(line, file=sys.stderr))
    except (ValueError, ImportError) as error:
        return refused("opd-trl eval", error)
    if args.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        show(result, plain_console())
    return 0


def show(result: dict[str, Any], console: Console) -> None:
    """Print a result: who, under which protocol, figures, differences, warnings."""
    console.print(Panel(heading(result), title=Text(f"opd-trl eval: {result['identity']['suite']}"), expand=False))
    console.print(figure_table(result))
    generation = result["generation"]
    console.print(
        f"\nanswers {generation['samples']}   truncated {generation['truncated']:.1%}   tokens "
        f"{generation['mean_tokens']:.0f} in the mean, {generation['median_tokens']:.0f} in the median, "
        f"{generation['max_tokens']} at most"
    )
    left_out = {f"left out of {part}": counts for part, counts in result["dropped"].items()}
    for title, counts in {"not right": result["counts"], **left_out}.items():
        if counts:
            console.print(f"{title}: " + ", ".join(f"{count} {reason}" for reason, count in counts.items()))
    for name, value in result["also"].items():
        console.print(f"{name} {value:.4g}")
    for comparison in result["comparisons"]:
        console.print()
        console.print(difference_table(comparison))
    for warning in result["warnings"]:
        console.print(f"\nWarning: {warning}", style="yellow")
    console.print(f"\nWrote {result['folder']}/result.json and samples.jsonl.")


def heading(result: dict[str, Any]) -> str:
    """What was measured and how: model, data, rules, protocol, date and machine, a line each."""
    identity, conditions = result["identity"], result["conditions"]
    lines = [f"model     {name_of(identity)}"]
    for part, source in result["sources"].items():
        problems = identity["data"][part]
        lines.append(f"{part:<10}{source}, {problems['problems']} problems ({problems['hash']})")
    if identity.get("rules"):
        lines.append(f"rules     {', '.join(identity['rules'])}")
    lines.append(f"protocol  {result['protocol_name']} ({result['protocol_hash']}): {in_words(identity['protocol'])}")
    lines.append(f"made      {conditions['date']}, {conditions['machine']}, commit {conditions['git_commit']}")
    return "\n".join(lines)


def name_of(identity: dict[str, Any]) -> str:
    """What was measured: the model, with its adapter and the context that it read."""
    parts = [identity["model"]["path"]]
    if identity.get("adapter"):
        parts.append(f"adapter {identity['adapter']['path']}")
    if identity.get("context"):
        parts.append(f"reading {identity['context']['path']}")
    return ", ".join(parts)


def in_words(protocol: dict[str, Any]) -> str:
    """The settings of a protocol that decide most.

    >>> in_words({"temperature": 0.6, "top_p": 0.95, "top_k": 0, "max_new_tokens": 512, "n": 2, "seeds": [0, 1],
    ...           "chat_template_kwargs": {"enable_thinking": False}})
    'temperature 0.6, top-p 0.95, at most 512 tokens, 2 samples x seeds 0, 1, enable_thinking=False'
    """
    kwargs = "".join(f", {key}={value}" for key, value in protocol["chat_template_kwargs"].items())
    drawn = (
        f"temperature {protocol['temperature']:g}, top-p {protocol['top_p']:g}"
        if protocol["temperature"]
        else "greedy"
    )
    top_k = f", top-k {protocol['top_k']}" * bool(protocol["top_k"])
    seeds = ", ".join(map(str, protocol["seeds"]))
    samples = f"{protocol['n']} sample{'s' * (protocol['n'] > 1)} x seed{'s' * (len(protocol['seeds']) > 1)} {seeds}"
    return f"{drawn}{top_k}, at most {protocol['max_new_tokens']} tokens, {samples}{kwargs}"


def figure_table(result: dict[str, Any]) -> Table:
    """The figures as a table: value, interval over problems, and with several seeds that over both and each seed's."""
    several = any("by_seed" in figure for figure in result["figures"].values())
    table = Table(box=None, pad_edge=False)
    for column in ("figure", "value", "95 % over problems", *(["and over seeds", "each seed"] if several else [])):
        table.add_column(column, justify="right" if column == "value" else "left", no_wrap=True)
    table.add_column("what")
    for name, figure in result["figures"].items():
        unit = figure["unit"]
        cells = [name, number(figure["value"], unit), between(figure["low"], figure["high"], unit)]
        if several:
            seeds = "by_seed" in figure
            cells.append(between(figure["low_over_seeds"], figure["high_over_seeds"], unit) if seeds else "")
            cells.append(" ".join(number(value, unit) for value in figure["by_seed"]) if seeds else "")
        table.add_row(*cells, figure["what"])
    return table


def difference_table(comparison: dict[str, Any]) -> Table:
    """This evaluation less another one, problem by problem."""
    table = Table(title=f"against {name_of(comparison['who'])} ({comparison['folder']})", box=None, pad_edge=False)
    table.add_column("figure", no_wrap=True)
    for column in ("there", "difference", "95 %", "problems up / down"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in comparison.items():
        if name in ("folder", "who"):
            continue
        unit = row["unit"]
        clear = "" if row["low"] <= 0 <= row["high"] else " *"
        cells = (number(row["base"], unit), number(row["difference"], unit, sign=True))
        interval = between(row["low"], row["high"], unit, sign=True) + clear
        table.add_row(name, *cells, interval, f"{row['rose']} / {row['fell']}")
    table.caption = "* the interval leaves out zero"
    return table


def number(value: float, unit: str, *, sign: bool = False) -> str:
    """A value as it is printed: a share in percent, anything else with four digits behind the point.

    >>> number(0.5, "%"), number(-0.021, "%", sign=True), number(1.25, "")
    ('50.0', '-2.1', '1.2500')
    """
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.1f}" if unit == "%" else f"{value:{plus}.4f}"


def between(low: float, high: float, unit: str, *, sign: bool = False) -> str:
    """The ends of an interval as they are printed, as `number` prints a value."""
    return f"{number(low, unit, sign=sign)} to {number(high, unit, sign=sign)}"
