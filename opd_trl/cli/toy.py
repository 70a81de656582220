"""`opd-trl toy`: a tiny model and its task, written in seconds, without network."""

import argparse
from pathlib import Path

from ..data.toy_calculator import CALCULATOR
from ..data.toy_task import ADDITION, write
from ..data.word_problems import WORD_PROBLEMS
from ..locks import writing
from .terminal import command_parser, refused


TASKS = {task.name: task for task in (ADDITION, CALCULATOR, WORD_PROBLEMS)}
DESCRIPTION = r"""
Write a tiny language model (Qwen3, 0.46 million random weights) and a task that it can learn on a CPU in minutes: five
digits added up modulo six. One in four SFT completions writes the steps out:
  4+3+0+2+5 mod 6  ->  4+3=11,1+0=01,1+2=03,3+5=12:\boxed{2}
The others state the answer straight away, which such a model does not learn to do. A student trained on both mostly
guesses; a reward teaches it to write the steps; this habit is what on-policy distillation then hands on.

  sft.jsonl   prompt, completion        supervised training:     trl sft
  rlvr.jsonl  prompt, answer, solution  reward from the answer:  trl grpo
  opd.jsonl   the same, completion      distillation:            opd-trl opd, opd-trl opsd
  test.jsonl  prompt, answer, solution  what none of them sees:  opd-trl eval
  README.md   names the four to `datasets`, so that stock TRL finds them by --dataset_name and --dataset_config
  model/      weights, a tokenizer of single characters, a chat template

The four parts share no prompt. The smoke recipes and the pipeline of math/ train on this folder.

--task calculator: tool calls over several turns. A calculator's keys have odd names, which only its manual explains:
  3 twin back  ->  twin:q press(q, 3) 6, back:y press(y, 6) 5, 5
  sft.jsonl    messages, tools                           many manuals, each in its prompt
  opd.jsonl    prompt, keys, answer, privileged_context  one manual, which the teacher alone reads
  test.jsonl   the same columns                          problems that none of them sees
The recipe agents/calculator trains on that folder.

--task word_problems: short problems in words, for a pretrained model (opd-trl demo --prepare-only fetches one).
  Sam has 4 balloons, loses 3 and finds 9 more. How many now?  ->  4-3=1, 1+9=10: \boxed{10}
  other.jsonl  the prompts of sft.jsonl, all worked out in sentences: We start with 4. Take away 3, that is 1. ...
The pipeline math/pipeline_smollm2 trains on that folder.
"""
EXAMPLES = """
examples
  opd-trl toy
  opd-trl toy --output runs/toy-1 --seed 1
  trl sft --model_name_or_path runs/toy/model --dataset_name runs/toy --dataset_config sft --use_cpu true \\
      --bf16 false --max_steps 250 --output_dir runs/toy-sft
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of `opd-trl toy`."""
    parser = command_parser("opd-trl toy", DESCRIPTION, EXAMPLES)
    parser.add_argument("--output", type=Path, default=Path("runs/toy"), help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of rows (default: 0)")
    parser.add_argument("--task", choices=list(TASKS), default="addition", help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there (default: refuse)")
    return parser


def main(argv: list[str]) -> int:
    """Run `opd-trl toy` and return its exit status."""
    args = make_parser().parse_args(argv)
    try:
        with writing(args.output):
            print(write(args.output, TASKS[args.task], seed=args.seed, overwrite=args.overwrite))
    except ValueError as error:  # DataError among them
        return refused("opd-trl toy", error)
    return 0
