"""The whole of an evaluation: check, draw what is missing, summarise, compare, write."""

import argparse
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..durable import atomically
from ..locks import writing
from ..models.forward import window_of
from ..models.loading import load_engine, load_tokenizer
from ..models.lora_folders import base_of, is_adapter, tokenizer_of_path
from ..models.provenance import check_model, conditions, identify
from ..privileged.contexts import read_shared_context
from ..scripts.quiet import quiet_libraries
from .math_suite import MathSuite
from .problems import read_problems
from .protocol import Protocol, digest, find_protocol, load_protocol
from .results import Suite, check_comparable, compare, summarise
from .retention_suite import RetentionSuite, score
from .rules_suite import InstructionSuite, RulesSuite
from .store import Store, draw, missing_batches, plan, read_json


DEFAULT_PROTOCOL = {"math": "math_paper", "rules": "rules", "retention": "retention"}
#: A complete command of each suite, for those who have left something out.
WHOLE = {
    "math": "opd-trl eval --model runs/opd --suite math --data math500",
    "rules": "opd-trl eval --model runs/opsd --suite rules --rule max_words:40 --data test.jsonl",
    "retention": "opd-trl eval --model runs/opd --suite retention",
}
#: Title and number of batches -> a progress bar, which yields what is called after each batch.
Bar = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


def evaluate(args: argparse.Namespace, *, bar: Bar, say: Callable[[str], None]) -> dict[str, Any]:
    """Run or go on with an evaluation; return the content of its result.json.

    `bar` shows progress, `say` one line to the user. Raises ValueError for bad input, before anything is drawn, and
    ImportError where a package of the suite or the engine is missing.
    """
    check_whole(args)
    path = find_protocol(args.protocol or DEFAULT_PROTOCOL[args.suite])
    protocol = overridden(load_protocol(path), args)
    check(args, protocol)
    context = read_shared_context(None, args.context)
    suite = make_suite(args, protocol, say)
    try:
        identity = identity_of(args, protocol, suite)
        for folder in args.compare:
            check_comparable(Path(folder), identity)
        tokenizer = load_tokenizer(tokenizer_of_path(args.adapter or args.model, base=args.model))
        tasks = plan(suite, protocol, tokenizer, context, window_of(AutoConfig.from_pretrained(args.model)))
        with writing(output_folder(args)):
            store = Store(output_folder(args), identity)
            drawn = fill(args, protocol, suite, tokenizer, tasks, store, bar, say)
            result = describe(args, path.stem, protocol, suite, identity, store, drawn)
            with atomically(store.folder / "result.json") as file:
                json.dump(result, file, indent=2, ensure_ascii=False)
    finally:
        suite.close()
    return result


def check_whole(args: argparse.Namespace) -> None:
    """Raise ValueError where a flag is missing that no evaluation goes without: all of them, and a whole command."""
    needed = ["model", "suite"] + ["data"] * (args.suite != "retention")
    missing = [f"--{name}" for name in needed if getattr(args, name) is None]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing. A whole command: "
            f"{WHOLE[args.suite or 'rules']} (--data: a file, or a name of `opd-trl data list`)."
        )


def overridden(protocol: Protocol, args: argparse.Namespace) -> Protocol:
    """The protocol with what the command line sets."""
    seeds = None
    if args.seeds is not None:
        texts = [text for part in args.seeds for text in part.split(",")]
        if not all(text.isdecimal() for text in texts):
            raise ValueError(f"--seeds must be whole numbers such as 0,1,2, got {' '.join(args.seeds)!r}.")
        seeds = list(map(int, texts))
    return protocol.override(n=args.n, seeds=seeds, max_new_tokens=args.max_new_tokens)


def check(args: argparse.Namespace, protocol: Protocol) -> None:
    """Raise ValueError for arguments that do not go together, and for models that are not there."""
    if protocol.suite != args.suite:
        raise ValueError(f"the protocol is of the suite {protocol.suite}, not {args.suite}. Give another --protocol.")
    if args.suite != "rules" and (args.rule or args.leak_rule or args.elsewhere):
        raise ValueError(f"--rule, --leak-rule and --elsewhere belong to --suite rules, got --suite {args.suite}.")
    if args.elsewhere and not args.rule:
        raise ValueError("--elsewhere measures where a rule leaks to: give the rule with --rule.")
    if args.leak_rule and not args.elsewhere:
        raise ValueError("--leak-rule is judged on the prompts of --elsewhere FILE, which is missing.")
    if args.suite == "retention" and args.engine == "vllm":
        raise ValueError("--suite retention scores texts with transformers. Leave --engine out.")
    if is_adapter(args.model):
        if args.adapter is not None:
            raise ValueError(
                f"--model {args.model!r} is an adapter already. Give its base as --model, or no --adapter."
            )
        args.model, args.adapter = base_of(args.model), args.model
    check_model(args.model, option="--model", needs="config.json")
    if args.adapter is not None:
        check_model(args.adapter, option="--adapter", needs="adapter_config.json")


def make_suite(args: argparse.Namespace, protocol: Protocol, say: Callable[[str], None]) -> Suite:
    """The suite that `--suite` names, with its problems read and checked."""
    if args.suite == "math":
        return MathSuite(read_problems(args.data, answers=True, limit=args.limit), protocol, say)
    if args.suite == "retention":
        return RetentionSuite(protocol, args.data)

    problems = read_problems(args.data, answers=False, limit=args.limit)
    if not args.rule:
        if all(problem.instructions is None for problem in problems.problems):
            raise ValueError(
                "--suite rules needs a rule: --rule one_sentence:Arr, (see --help), or rows of IFEval with "
                "instruction_id_list and kwargs."
            )
        return InstructionSuite(problems, protocol)
    elsewhere = None if args.elsewhere is None else read_problems(args.elsewhere, answers=False)
    return RulesSuite(problems, args.rule, elsewhere, args.leak_rule)


def identity_of(args: argparse.Namespace, protocol: Protocol, suite: Suite) -> dict[str, Any]:
    """What the samples depend on; `run.json` holds it, and another evaluation differs in it."""
    return {
        "suite": args.suite,
        "model": identify(args.model),
        "adapter": None if args.adapter is None else identify(args.adapter),
        "context": None
        if args.context is None
        else {"path": args.context, "hash": digest(Path(args.context).read_bytes())},
        "protocol": protocol.identity(),
        "data": {part: {"problems": len(p.problems), "hash": p.hash} for part, p in suite.parts.items()},
        "rules": args.rule,
        "leak_rules": args.leak_rule,
        "engine": args.engine,
        "dtype": args.dtype,
    }


def output_folder(args: argparse.Namespace) -> Path:
    """`--output`, or a folder named after suite and model."""
    who = Path(args.adapter or args.model).name
    return Path(args.output or f"runs/eval/{args.suite}_{who}")


def fill(
    args: argparse.Namespace,
    protocol: Protocol,
    suite: Suite,
    tokenizer: Any,
    tasks: list,
    store: Store,
    bar: Bar,
    say: Callable[[str], None],
) -> bool:
    """Draw what is missing; return whether anything was."""
    if store.repaired:
        say(f"{store.path}: an unfinished last line is cut off; its sample is drawn again.")
    wanted = len(tasks) + len(suite.texts)
    if len(store.samples) == wanted:
        return False
    if store.samples:
        say(f"{store.folder} has {len(store.samples)} of {wanted} samples; the rest is drawn.")
    with quiet_libraries(ours_too=False):
        engine = load_engine(
            args.engine, args.model, tokenizer, adapter=args.adapter, dtype=args.dtype, batch_size=args.batch_size
        )
        if suite.texts:
            score(suite.texts, tokenizer, engine.model, store)
        batches = missing_batches(tasks, engine.batch_size, store)
        with bar(f"{args.suite}, batches of {engine.batch_size}", len(batches)) as done:
            draw(batches, engine, suite, protocol, store, done)
    return True


def describe(
    args: argparse.Namespace, name: str, protocol: Protocol, suite: Suite, identity: dict, store: Store, drawn: bool
) -> dict[str, Any]:
    """All of result.json. Where nothing was drawn, conditions stay those under which it was."""
    samples = list(store.samples.values())
    before = store.folder / "result.json"
    keep = not drawn and before.is_file()
    metrics = suite.metrics(samples)
    return {
        **summarise(suite, protocol, samples),
        "comparisons": [compare(Path(folder), identity, metrics, suite) for folder in args.compare],
        "protocol_name": name,
        "protocol_hash": protocol.hash,
        "identity": identity,
        "sources": {part: problems.source for part, problems in suite.parts.items()},
        "conditions": read_json(before)["conditions"] if keep else conditions(),
        "folder": str(store.folder),
    }
