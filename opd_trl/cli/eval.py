"""`opd-trl eval`: measure a model, with seeds, intervals and a protocol that is pinned."""

import argparse
import sys


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
    parser = argparse.ArgumentParser(
        prog="opd-trl eval",
        description=DESCRIPTION,
        epilog=RULES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, help="folder or hub id")
    add("--adapter", help="folder of a LoRA adapter on top of it")
    add("--suite", required=True, choices=("math", "rules", "retention"), help="what is measured")
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
    from ..suites.evaluate import evaluate, print_result

    try:
        result = evaluate(args)
    except (ValueError, ImportError) as error:
        print(f"opd-trl eval: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("opd-trl eval: interrupted. The samples are kept; the same command goes on.", file=sys.stderr)
        return 130
    print_result(result, as_json=args.json)
    return 0
