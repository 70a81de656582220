"""One cell of `internalise.py`: train a student on a rule with an objective and a seed, then judge it."""

import json
import time
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import torch
from datasets import Dataset
from internalise_rules import ELSEWHERE, PLAIN_TEXT, QUESTIONS, RULES, TRAIN, Rule, read_prompts, verdicts
from measure import conditions, installed, read_lines, write_lines
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from opd_trl import OPSDTrainer
from opd_trl.scripts import common, opsd


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


def run_cell(args, budget: int | None = None) -> dict[str, Any]:
    """Train and judge one cell, or judge an untrained one (`before`, `teacher`); return its line.

    Args:
        args: model, rule, objective, seed, `output`, a folder of the cell's own for adapter, answers and curves, and
            `device`, `settings`, which change `SETTINGS`, and `held_out`, questions of each kind.
        budget: completion tokens for `sft`.
    """
    start, rule = time.perf_counter(), RULES[args.rule]
    args.output.mkdir(parents=True, exist_ok=True)
    line: dict[str, Any] = {"rule": args.rule, "objective": args.objective, "seed": args.seed}
    if args.objective in ("before", "teacher"):
        model, tokenizer = load(args.model, args.device)
        context = json.loads(rule.context.read_text()) if args.objective == "teacher" else []
    else:
        trainer, tokens = train_sft(args, rule, budget) if args.objective == "sft" else train_on_policy(args, rule)
        line |= {"steps": trainer.state.global_step, "completion_tokens": tokens}
        line |= {"train_seconds": round(time.perf_counter() - start, 1)}
        write_lines(args.output / "history.jsonl", trainer.state.log_history)
        model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
        settings = {**SETTINGS, **args.settings, **SAMPLING, "max_completion_length": MAX_COMPLETION_LENGTH}
        line |= {"settings": settings | LORA}
        line["settings"] |= OBJECTIVES.get(
            args.objective, {"per_device_train_batch_size": trainer.args.train_batch_size}
        )
        context = []
    line |= judge(model, tokenizer, rule, context, args)
    line |= {"retention": nats_per_token(model, tokenizer)} if args.objective != "teacher" else {}
    versions = {name: installed(name) for name in ("transformers", "peft")}
    return line | {"wall_seconds": round(time.perf_counter() - start, 1), **conditions(args.device), **versions}


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
    trainer.save_model(str(args.output / "adapter"))

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
    write_lines(args.output / "teacher.jsonl", [{"text": tokenizer.decode(row["input_ids"])} for row in rows])
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
    trainer.save_model(str(args.output / "adapter"))
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
        read = [context + prompt for prompt in asked]
        completions = generate(model, tokenizer, read, MAX_COMPLETION_LENGTH, **SAMPLING)
        for prompt, completion in zip(asked, completions, strict=True):
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
            yield {"input_ids": ids + completion, "completion_mask": [0] * len(ids) + [1] * len(completion)}


def judge(model, tokenizer, rule: Rule, context: list, args) -> dict[str, Any]:
    """Compliance on the held-out questions, greedy and at T=1, and leakage elsewhere; texts go into a file."""
    torch.manual_seed(args.seed)
    questions, elsewhere = (read_prompts(path)[: args.held_out] for path in (QUESTIONS, ELSEWHERE))
    asked = {
        "greedy": ([context + prompt for prompt in questions], {}),
        "sampled": ([context + prompt for prompt in questions], {"temperature": 1.0}),
        "elsewhere": ([with_context(context, prompt) for prompt in elsewhere], {}),
    }
    texts = {}
    for name, (prompts, sampling) in asked.items():
        ids = generate(model, tokenizer, prompts, MAX_NEW_TOKENS, **sampling)
        texts[name] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    (args.output / "answers.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")
    return verdicts(rule, texts)


def with_context(context: list, prompt: list) -> list:
    """Context before a prompt; of two system messages the prompt's own stays, after the teacher's."""
    if context and prompt[0]["role"] == "system":
        system = {"role": "system", "content": f"{context[0]['content']}\n\n{prompt[0]['content']}"}
        return [system, *context[1:], *prompt[1:]]
    return context + prompt


@torch.no_grad()
def generate(model, tokenizer, prompts: list, length: int, **sampling: float) -> list[list[int]]:
    """Completion ids, up to and with EOS; greedy without `sampling`."""
    was_training, completions = model.training, []
    model.eval()
    options = {"do_sample": True, "top_k": 0, **sampling} if sampling else {"do_sample": False}
    for start in range(0, len(prompts), 64):
        batch = tokenizer.apply_chat_template(
            prompts[start : start + 64],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            padding=True,
            tokenizer_kwargs={"padding_side": "left"},
        ).to(model.device)
        out = model.generate(**batch, max_new_tokens=length, pad_token_id=tokenizer.pad_token_id, **options)
        for ids in out[:, batch["input_ids"].size(1) :].tolist():
            end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
            completions.append(ids[:end])
    model.train(was_training)
    return completions


@torch.no_grad()
def nats_per_token(model, tokenizer) -> float:
    """Mean negative log-likelihood of plain text, paragraph by paragraph, each token weighing the same."""
    was_training, total, tokens = model.training, 0.0, 0
    model.eval()
    for paragraph in read_lines(PLAIN_TEXT):
        ids = tokenizer(paragraph["text"], return_tensors="pt")["input_ids"].to(model.device)
        total += model(input_ids=ids, labels=ids).loss.item() * (ids.size(1) - 1)
        tokens += ids.size(1) - 1
    model.train(was_training)
    return round(total / tokens, 4)


def load(path: str, device: str):
    """Model and tokenizer, as the recipe loads them."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    return model.to(device), AutoTokenizer.from_pretrained(path)
