"""One cell of `internalise.py`: train a student on a rule with an objective and a seed, then judge it."""

import json
import time
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import torch
from datasets import Dataset
from internalise_rules import ELSEWHERE, PLAIN_TEXT, QUESTIONS, RULES, TRAIN, Rule, read_prompts, verdicts
from measure import conditions
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from opd_trl import OPSDTrainer
from opd_trl.data.files import read_jsonl, write_jsonl
from opd_trl.models.transformers_engine import answer_ids
from opd_trl.privileged.builders import get_builder
from opd_trl.scripts import common, opsd
from opd_trl.suites.retention_suite import make_scorer, pooled, score_texts


# The same for every objective: none of them is tuned by itself.
SETTINGS = {
    "max_steps": 24,
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 5,
}
MAX_COMPLETION_LENGTH = 24
SAMPLING = {"temperature": 1.0, "top_p": 0.95}
UNION = {"loss_support": "union", "loss_top_k": 20}
OBJECTIVES = {
    "stop_gradient_topk": {"divergence": "reverse_kl", "loss_tail": "drop", "stop_gradient": True, **UNION},
    "forward_kl": {"divergence": "forward_kl", "loss_tail": "bucket", **UNION},
    "jsd": {"divergence": "jsd", "divergence_beta": 0.5, "loss_tail": "bucket", **UNION},
}
# The demo recipe's adapter.
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "lora_dropout": 0.05}
MAX_NEW_TOKENS = 32
# The worked examples before a prompt; of two system messages the prompt's own stands after the teacher's.
WITH_CONTEXT = get_builder("few_shot")


def run_cell(args, budget: int | None = None) -> dict[str, Any]:
    """Train and judge one cell, or judge an untrained one (`before`, `teacher`); return its line.

    Args:
        args: model, rule, objective, seed, `output`, a folder of the cell's own for adapter, answers and curves, and
            `device`, `settings`, which change `SETTINGS`, and `held_out`, questions of each kind.
        budget: completion tokens for `sft`.
    """
    start, rule, context = time.perf_counter(), RULES[args.rule], []
    args.output.mkdir(parents=True, exist_ok=True)
    line: dict[str, Any] = {"rule": args.rule, "objective": args.objective, "seed": args.seed}
    if args.objective in ("before", "teacher"):
        model, tokenizer = load(args.model, args.device)
        context = json.loads(rule.context.read_text()) if args.objective == "teacher" else []
    else:
        trainer, tokens = train_sft(args, rule, budget) if args.objective == "sft" else train_on_policy(args, rule)
        trainer.save_model(str(args.output / "adapter"))
        line |= {"steps": trainer.state.global_step, "completion_tokens": tokens}
        line |= {"train_seconds": round(time.perf_counter() - start, 1)}
        write_jsonl(args.output / "history.jsonl", trainer.state.log_history)
        model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
        own = OBJECTIVES.get(args.objective, {"per_device_train_batch_size": trainer.args.train_batch_size})
        settings = {**SETTINGS, **args.settings, **SAMPLING, "max_completion_length": MAX_COMPLETION_LENGTH}
        line["settings"] = {**settings, **LORA, **own}
    model.eval()
    line |= judge(model, tokenizer, rule, context, args)
    if not context:
        scores = score_texts([row["text"] for row in read_jsonl(PLAIN_TEXT)], tokenizer, make_scorer(model))
        line["retention"] = round(pooled(scores)["nats per token, pooled"], 4)
    return line | {"wall_seconds": round(time.perf_counter() - start, 1), **conditions(args.device)}


def train_on_policy(args, rule: Rule):
    """OPSD with the demo's recipe, this rule's context and this objective's loss."""
    settings = {**SETTINGS, **args.settings}
    options = {
        **settings,
        **SAMPLING,
        **OBJECTIVES[args.objective],
        **precision(args.device),
        "max_completion_length": MAX_COMPLETION_LENGTH,
        "model_name_or_path": args.model,
        "dataset_name": TRAIN,
        "privileged_context_file": rule.context,
        "output_dir": args.output / "adapter",
        "seed": args.seed,
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    parsed = opsd.make_parser().parse_args_and_config(["--config", "system_prompt/demo", *flags])
    trainer = common.build_trainer(OPSDTrainer, *parsed)
    trainer.train()
    means = (entry.get("completions/mean_length", 0.0) for entry in trainer.state.log_history)
    return trainer, round(sum(mean * settings["per_device_train_batch_size"] for mean in means))


def precision(device: str) -> dict[str, bool]:
    """The recipe is for a CPU; a card computes in bfloat16, of which the weights are in both."""
    return {"use_cpu": device == "cpu", "bf16": device == "cuda"}


def train_sft(args, rule: Rule, budget: int):
    """Plain SFT of the student, without the context, on answers that the teacher wrote with it."""
    settings = {**SETTINGS, **args.settings}
    model, tokenizer = load(args.model, args.device)
    rows = sft_rows(model, tokenizer, rule, seed=args.seed, budget=budget, steps=settings["max_steps"])
    write_jsonl(args.output / "teacher.jsonl", [{"text": tokenizer.decode(row["input_ids"])} for row in rows])
    config = SFTConfig(
        **settings | {"per_device_train_batch_size": len(rows) // settings["max_steps"]},
        **precision(args.device),
        output_dir=str(args.output / "adapter"),
        seed=args.seed,
        completion_only_loss=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    trainer = SFTTrainer(
        model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
    )
    trainer.train()
    return trainer, sum(sum(row["completion_mask"]) for row in rows)


def sft_rows(model, tokenizer, rule: Rule, *, seed: int, budget: int, steps: int) -> list[dict[str, list[int]]]:
    """Rows for the steps of a run, equally many each, whose completions have about `budget` tokens together."""
    stream, rows, tokens = teacher_rows(model, tokenizer, rule, seed=seed), [], 0
    while tokens < budget:
        rows.append(next(stream))
        tokens += sum(rows[-1]["completion_mask"])
    wanted = max(1, round(len(rows) / steps)) * steps
    return [*rows, *islice(stream, max(0, wanted - len(rows)))][:wanted]


def teacher_rows(model, tokenizer, rule: Rule, *, seed: int) -> Iterator[dict[str, list[int]]]:
    """The teacher's answers to the training questions, as ids after the student's own prompt, without an end.

    Cut and finished answers stay as the student's own would: the same longest length, EOS only where it was written.
    """
    torch.manual_seed(seed)
    prompts, context = read_prompts(TRAIN), json.loads(rule.context.read_text())
    order = cycle(torch.randperm(len(prompts)).tolist())
    while True:
        asked = [prompts[i] for i in islice(order, 64)]
        read = [WITH_CONTEXT(prompt, context) for prompt in asked]
        options = {"max_new_tokens": MAX_COMPLETION_LENGTH, **SAMPLING}
        completions = answer_ids(model, tokenizer, read, batch_size=64, **options)
        for prompt, completion in zip(asked, completions, strict=True):
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
            yield {"input_ids": ids + completion, "completion_mask": [0] * len(ids) + [1] * len(completion)}


def judge(model, tokenizer, rule: Rule, context: list, args) -> dict[str, Any]:
    """Compliance on the held-out questions, greedy and at T=1, and leakage elsewhere; texts go into a file."""
    torch.manual_seed(args.seed)
    questions, elsewhere = (read_prompts(path)[: args.held_out] for path in (QUESTIONS, ELSEWHERE))
    asked = {"greedy": (questions, {}), "sampled": (questions, {"temperature": 1.0}), "elsewhere": (elsewhere, {})}
    texts = {}
    for name, (prompts, sampling) in asked.items():
        read = [WITH_CONTEXT(prompt, context) for prompt in prompts] if context else prompts
        ids = answer_ids(model, tokenizer, read, max_new_tokens=MAX_NEW_TOKENS, batch_size=64, **sampling)
        texts[name] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    (args.output / "answers.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")
    return verdicts(rule, texts)


def load(path: str, device: str):
    """Model and tokenizer, as the recipe loads them."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    return model.to(device), AutoTokenizer.from_pretrained(path)
