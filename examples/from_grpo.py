"""A stock TRL GRPO script; the lines marked are all that changes to add a teacher to its rewards.

python examples/from_grpo.py --model Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-4B
"""

import argparse

import torch
from datasets import Dataset

from opd_trl import OPDConfig, OPDTrainer  # was: from trl import GRPOConfig, GRPOTrainer


def answer_is_in(completions, answer, **kwargs):
    """Reward: does the completion contain the answer?"""
    return [float(right in completion[0]["content"]) for completion, right in zip(completions, answer, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--output", default="runs/examples/from_grpo")
    parser.add_argument("--max-steps", type=int, default=100)
    args = parser.parse_args()

    gpu = torch.cuda.is_available()
    pairs = [(a, b) for a in range(2, 12) for b in range(2, 12)]
    dataset = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"What is {a} + {b}?"}] for a, b in pairs],
            "answer": [str(a + b) for a, b in pairs],
        }
    )
    trainer = OPDTrainer(  # was: GRPOTrainer
        model=args.model,
        teacher_model=args.teacher,  # added
        reward_funcs=answer_is_in,
        args=OPDConfig(  # was: GRPOConfig
            output_dir=args.output,
            max_steps=args.max_steps,
            num_generations=4,
            per_device_train_batch_size=8,
            max_completion_length=64 if gpu else 16,
            distillation_coef=1.0,  # added: weights of the two losses
            policy_coef=1.0,  # added
            logging_steps=1,
            report_to="none",
            use_cpu=not gpu,
            bf16=gpu,
        ),
        train_dataset=dataset,
    )
    trainer.train()
    trainer.save_model(args.output)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
