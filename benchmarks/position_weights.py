"""What `loss_position_weight` costs: a step but its generation, with iw_opd and without, in turns.

    python benchmarks/position_weights.py

Student and teacher have random weights in the shape of SmolLM2-135M (30 layers, hidden 576, 49,152 ids, float32), 8
completions of 48 tokens. Both teacher and student pass with the backward, and the part of it that is the heads' alone.
"""

import argparse
import statistics
import tempfile
import time

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from opd_trl import OPDConfig, OPDTrainer
from opd_trl.data.toy_task import build_tokenizer
from opd_trl.losses.fused import distillation_loss
from opd_trl.losses.head import Head
from opd_trl.losses.next_token import NextToken
from opd_trl.losses.objective import Objective, Tokens
from opd_trl.losses.token_weights import early_weight, weighted


SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
ROWS, LENGTH = 8, 48


def head_alone(support: str):
    """Two functions: the loss of the head with its backward, without weights and with iw_opd."""
    count, vocab, hidden = ROWS * LENGTH, SHAPE["vocab_size"], SHAPE["hidden_size"]
    states = [torch.randn(count, hidden, requires_grad=i == 0) for i in range(2)]
    weights = [torch.randn(vocab, hidden).mul_(0.05).requires_grad_(i == 0) for i in range(2)]
    student, teacher = (NextToken(x, Head(w)) for x, w in zip(states, weights, strict=True))
    tokens = Tokens(torch.full((count,), 1 / count), torch.randint(vocab, (count,)))
    objective, kept = Objective(support=support), torch.ones(ROWS, LENGTH, dtype=torch.bool)

    def plain():
        distillation_loss(student, teacher, tokens, objective)[0].backward()

    def early():
        own, _ = weighted(tokens, early_weight, student, teacher, kept, objective)
        distillation_loss(student, teacher, own, objective)[0].backward()

    return plain, early


def whole_step(folder: str, layers: int, support: str):
    """Two functions: a step but its generation, without weights and with iw_opd."""
    tokenizer = build_tokenizer()
    student, teacher = (LlamaForCausalLM(LlamaConfig(**SHAPE, num_hidden_layers=layers)) for _ in range(2))
    args = OPDConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        report_to="none",
        per_device_train_batch_size=ROWS,
        max_completion_length=LENGTH,
        loss_support=support,
        loss_position_weight="iw_opd",
    )
    rows = Dataset.from_list([{"prompt": "word " * 8}] * ROWS)
    options = {"processing_class": tokenizer, "teacher_processing_class": tokenizer, "train_dataset": rows}
    trainer = OPDTrainer(student, teacher_model=teacher, args=args, **options)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch, weight = trainer.answer(list(rows)), trainer.token_weight

    def run(chosen):
        trainer.token_weight = chosen
        trainer.batch_loss(batch).backward()

    return lambda: run(None), lambda: run(weight)


def ratio(plain, early, times: int) -> str:
    """Medians of the processor seconds of both in turns, and of the ratio of neighbours."""
    plain(), early()
    seconds = []
    for _ in range(times):
        pair = []
        for function in (plain, early):
            start = time.process_time()
            function()
            pair.append(time.process_time() - start)
        seconds.append(pair)
    ratios = sorted(after / before for before, after in seconds)
    without, with_weight = (statistics.median(x) for x in zip(*seconds, strict=True))
    middle = statistics.median(ratios)
    return f"{without:.2f} s, {with_weight:.2f} s, ratio {middle:.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--layers", type=int, default=30)
    args = parser.parse_args()
    torch.manual_seed(0)
    for support in ("sampled", "student"):
        print(f"head alone, {support}: {ratio(*head_alone(support), args.times)}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            print(f"step, {support}: {ratio(*whole_step(folder, args.layers, support), args.times)}", flush=True)


if __name__ == "__main__":
    main()
