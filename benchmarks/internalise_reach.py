"""Can an objective see the rule? What the student gives to the teacher's first token, before training.

    python benchmarks/internalise_reach.py --model runs/demo/model       the first tokens, rule by rule
    python benchmarks/internalise_reach.py --histories runs/internalise  support and entropy, first and last step

The gradient of reverse KL and of the JSD carries the student's probability of a token as a factor: a token that the
student hardly gives hardly moves them, on any support. Forward KL is pulled by the teacher's probability.
"""

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

from internalise_lines import HELD_OUT, ON_POLICY, RULES


TOP_K = 20
FIGURES = {
    "support/student_mass": "student's mass on the union",
    "support/teacher_mass": "teacher's mass on the union",
    "entropy": "student's entropy, nats",
    "loss": "loss",
}


def first_tokens(model_path: str) -> list[list[Any]]:
    """Per rule: the teacher's most probable first token, what both give to it, how often the student's TopK has it."""
    import torch
    from internalise_cell import load
    from internalise_rules import QUESTIONS, read_prompts
    from internalise_rules import RULES as CONTEXTS

    model, tokenizer = load(model_path, "cpu")
    model.eval()

    @torch.no_grad()
    def first(messages: list) -> torch.Tensor:
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        return model(**encoded, logits_to_keep=1).logits[0, -1].float().softmax(-1)

    rows = []
    prompts = read_prompts(QUESTIONS)[:HELD_OUT]
    students = [first(prompt) for prompt in prompts]
    for rule in RULES:
        context = json.loads(CONTEXTS[rule].context.read_text(encoding="utf-8"))
        teachers = [first(context + prompt) for prompt in prompts]
        tokens = [int(teacher.argmax()) for teacher in teachers]
        names = Counter(tokenizer.decode([token]) for token in tokens)
        theirs = fmean(float(p[token]) for p, token in zip(teachers, tokens, strict=True))
        mine = [float(q[token]) for q, token in zip(students, tokens, strict=True)]
        seen = fmean(token in q.topk(TOP_K).indices for q, token in zip(students, tokens, strict=True))
        token, count = names.most_common(1)[0]
        rows.append(
            [rule, f"`{token}` ({count} of {len(tokens)})", theirs, f"{median(mine):.1e}", f"{max(mine):.1e}", seen]
        )
    return rows


def histories(output: Path) -> list[list[Any]]:
    """Per rule and objective: the figures of the first and of the last step, mean over the seeds that there are."""
    rows = []
    for rule in RULES:
        for objective in ON_POLICY:
            runs = [read_history(path) for path in sorted(output.glob(f"{rule}-{objective}-*/history.jsonl"))]
            if runs:
                steps = defaultdict(list)
                for run in runs:
                    for name in FIGURES:
                        steps[name].append((float(run[0][name]), float(run[-1][name])))
                ends = [" -> ".join(f"{fmean(end):.2f}" for end in zip(*steps[name], strict=True)) for name in FIGURES]
                rows.append([rule, objective, len(runs), *ends])
    return rows


def read_history(path: Path) -> list[dict[str, Any]]:
    """The logged steps of a run."""
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "loss" in line]


def main(argv: list[str] | None = None) -> int:
    from measure import print_table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the student; default: no table of first tokens")
    parser.add_argument("--histories", type=Path, help="output folder of internalise.py; default: no table of them")
    args = parser.parse_args(argv)
    if args.model:
        columns = [
            "rule",
            "teacher's first token",
            "teacher's mass",
            "student's mass, median",
            "largest",
            "in student's Top-20",
        ]
        print_table("First token of the answer, 48 held-out questions", columns, first_tokens(args.model))
    if args.histories:
        print_table("First -> last step", ["rule", "objective", "seeds", *FIGURES.values()], histories(args.histories))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
