"""A student learns a system prompt that it never sees: LoRA, teacher = the same weights with the adapter off.

python examples/opsd_system_prompt.py --model Qwen/Qwen3-1.7B
"""

import argparse

import torch
from datasets import Dataset
from peft import LoraConfig

from opd_trl import OPSDConfig, OPSDTrainer


SYSTEM_PROMPT = "Answer in one short sentence, and end it with a question back to the user."
QUESTIONS = [
    f"{verb} {thing}?"
    for verb in ("What is", "How do I find", "Why do people like", "Who invented")
    for thing in ("bread", "a good book", "the compass", "chess", "glass", "the bicycle", "tea", "paper")
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="hub id or path of a chat model")
    parser.add_argument("--output", default="runs/examples/opsd")
    parser.add_argument("--max-steps", type=int, default=50)
    args = parser.parse_args()

    gpu = torch.cuda.is_available()
    trainer = OPSDTrainer(
        model=args.model,
        args=OPSDConfig(
            output_dir=args.output,
            max_steps=args.max_steps,
            per_device_train_batch_size=8,
            max_completion_length=128 if gpu else 16,
            privileged_context=SYSTEM_PROMPT,  # or a column "privileged_context", or privileged_context_file
            divergence="mixed",  # forward KL finds the modes that the student lacks, reverse KL sharpens them
            loss_support="union",
            learning_rate=1e-4,
            logging_steps=1,
            report_to="none",
            use_cpu=not gpu,
            bf16=gpu,
        ),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": q}] for q in QUESTIONS]}),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(args.output)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
