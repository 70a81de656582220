"""A student learns a tool's manual that only its teacher reads, from its own calls over several turns.

python examples/opsd_tools.py --seed 0
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from opd_trl import OPSDConfig, OPSDTrainer
from opd_trl.data.toy_calculator import CALCULATOR, LEARNED, Calculator, manual
from opd_trl.data.toy_task import write
from opd_trl.evaluation import graded_text


MANUAL = manual(LEARNED)
ON_CPU = {"use_cpu": not torch.cuda.is_available(), "bf16": False, "report_to": "none", "disable_tqdm": True}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path("runs/examples/opsd_tools"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sft-steps", type=int, default=400)
    parser.add_argument("--max-steps", type=int, default=60)
    args = parser.parse_args()
    print(write(args.output, CALCULATOR, seed=args.seed, overwrite=True))

    # The call format, and to follow whatever manual is in the prompt.
    settings = {"seed": args.seed, "per_device_train_batch_size": 32, "lr_scheduler_type": "cosine", **ON_CPU}
    settings |= {"gradient_checkpointing": False, "save_strategy": "no"}
    start = {"learning_rate": 3e-3, "warmup_steps": 60, "assistant_only_loss": True}
    sft = SFTTrainer(
        str(args.output / "model"),
        args=SFTConfig(str(args.output / "sft"), max_steps=args.sft_steps, **start, **settings),
        train_dataset=load_dataset(str(args.output), "sft", split="train"),
    )
    sft.train()
    sft.save_model()

    # One manual, which the teacher alone reads: column "privileged_context". The environment gives the tool.
    trainer = OPSDTrainer(
        str(args.output / "sft"),
        args=OPSDConfig(
            str(args.output / "opsd"),
            max_steps=args.max_steps,
            max_completion_length=64,
            learning_rate=1e-3,
            logging_steps=5,
            **settings,
        ),
        train_dataset=load_dataset(str(args.output), "opd", split="train"),
        environment_factory=Calculator,
    )
    test = list(load_dataset(str(args.output), "test", split="train"))
    told = [row | {"prompt": [{"role": "system", "content": MANUAL}, *row["prompt"]]} for row in test]
    print(f"solved before {solved(trainer, test):.3f}; with the manual in the prompt {solved(trainer, told):.3f}")
    trainer.train()
    trainer.save_model()
    print(f"solved after {solved(trainer, test):.3f}")


def solved(trainer: OPSDTrainer, rows: list) -> float:
    """Share of problems whose last word is right, sampled at the temperature of training."""
    trainer.model.eval()
    right = 0
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        trainer.answer(part)
        answers = map(graded_text, trainer.last_completions[-len(part) :])
        right += sum(answer.strip() == row["answer"] for answer, row in zip(answers, part, strict=True))
    return right / len(rows)


if __name__ == "__main__":
    main()
