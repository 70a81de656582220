"""On-policy distillation from a larger teacher, with the paper's stop-gradient TopK loss.

python examples/opd.py --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-4B
accelerate launch --config_file recipes/accelerate_configs/zero3.yaml examples/opd.py ...
"""

import argparse

import torch
from datasets import Dataset

from opd_trl import OPDConfig, OPDTrainer


QUESTIONS = [f"What is {a} times {b}?" for a in range(2, 12) for b in range(2, 12)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--student", required=True, help="hub id or path")
    parser.add_argument("--teacher", required=True, help="hub id or path; of the student's tokenizer, or nearly")
    parser.add_argument("--output", default="runs/examples/opd")
    parser.add_argument("--max-steps", type=int, default=100)
    args = parser.parse_args()

    gpu = torch.cuda.is_available()
    trainer = OPDTrainer(
        model=args.student,
        teacher_model=args.teacher,
        args=OPDConfig(
            output_dir=args.output,
            max_steps=args.max_steps,
            per_device_train_batch_size=8,
            max_completion_length=128 if gpu else 16,
            divergence="reverse_kl",
            loss_support="intersection",  # the paper's; renormalised and with stop-gradient by default
            learning_rate=2e-6,
            logging_steps=1,
            report_to="none",
            use_cpu=not gpu,
            bf16=gpu,
        ),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": q}] for q in QUESTIONS]}),
    )
    trainer.train()
    trainer.save_model(args.output)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
