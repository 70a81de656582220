"""Samples on disk: appended as they come, repaired after a kill, never mixed with those of another evaluation."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..durable import append_lines, atomically, cut_unfinished_line
from ..foreign import parse_json
from ..models.sampling import Engine, Sampling, derived_seed
from .problems import Problem, encode, messages_of
from .protocol import Protocol, differences


Sample = dict[str, Any]
Key = tuple[str, str, int, int]


class Store:
    """The folder of one evaluation: `run.json` says of what, `samples.jsonl` holds the samples.

    Args:
        folder: made where it is missing.
        identity: what the samples depend on.

    Raises:
        ValueError: the folder holds another evaluation (what differs is said), is not a folder, or cannot be written.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.path = folder, folder / "samples.jsonl"
        run = folder / "run.json"
        if run.is_file():
            changed = differences(read_json(run), identity)
            if changed:
                raise ValueError(
                    f"{folder} holds another evaluation: {'; '.join(changed)}. Give another --output, or remove it."
                )
        elif self.path.exists():
            raise ValueError(f"{folder} has samples.jsonl but no run.json that says of what. Give another --output.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomically(run) as file:
                json.dump(identity, file, indent=2)
        except OSError as error:
            raise ValueError(f"--output {folder} cannot be written: {error}. Give a folder that can.") from None
        self.repaired = cut_unfinished_line(self.path)
        self.samples = {key(sample): sample for sample in read_samples(self.path)}

    def append(self, samples: Iterable[Sample]) -> None:
        """Write samples down, those that are there already left out; on the disk when this returns."""
        missing = {key(sample): sample for sample in samples if key(sample) not in self.samples}
        append_lines(self.path, missing.values(), sync=True)
        self.samples |= missing


def key(sample: Sample) -> Key:
    """What a sample is found by: part, problem, seed, number."""
    return sample["part"], sample["problem"], sample["seed"], sample["sample"]


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file, none where there is no file; raises ValueError that names a broken line."""
    samples = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], start=1):
        try:
            sample = parse_json(line)
            key(sample)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is not a sample ({error}). Remove the line; it is drawn again."
            ) from None
        samples.append(sample)
    return samples


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds; raises ValueError where it holds none."""
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}. Remove the folder, or give another.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object. Remove the folder, or give another.")
    return content


@dataclass(frozen=True)
class Task:
    """One sample to draw: of which problem, with which seed, its number among those, and the prompt's token ids."""

    part: str
    problem: Problem
    seed: int
    number: int
    prompt: tuple[int, ...]

    @property
    def key(self) -> Key:
        """What the sample will be found by."""
        return self.part, self.problem.id, self.seed, self.number


def plan(suite: Any, protocol: Protocol, tokenizer: Any, context: Any, limit: int | None) -> list[Task]:
    """Every sample of an evaluation, prompts of one length together.

    The longest come first, so that what does not fit into memory fails at once. Raises ValueError where a prompt with
    the longest answer is longer than `limit`, the model's context.
    """
    tasks = []
    for part, problems in suite.parts.items():
        for problem in problems.problems:
            prompt = tuple(encode(messages_of(problem, protocol, context), tokenizer, protocol))
            if limit is not None and len(prompt) + protocol.max_new_tokens > limit:
                raise ValueError(
                    f"a prompt of {problems.source} has {len(prompt)} tokens and max_new_tokens is "
                    f"{protocol.max_new_tokens}, together more than the model's context of {limit}. Take a protocol "
                    f"with fewer (--max-new-tokens {max(1, limit - len(prompt))} at most), or leave the prompt out: "
                    f"{problem.messages[-1]['content'][:80]!r}"
                )
            tasks += [Task(part, problem, seed, i, prompt) for seed in protocol.seeds for i in range(protocol.n)]
    return sorted(tasks, key=lambda task: (-len(task.prompt), task.problem.id, task.seed, task.number))


def missing_batches(tasks: list[Task], size: int, store: Store) -> list[list[Task]]:
    """The batches in which a sample is missing.

    They are cut before looking, so that a resumed run draws what one that was never ended would have.
    """
    batches = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    return [batch for batch in batches if any(task.key not in store.samples for task in batch)]


def draw(
    batches: list[list[Task]],
    engine: Engine,
    suite: Any,
    protocol: Protocol,
    store: Store,
    advance: Callable[[], None],
) -> None:
    """Generate, judge and write the samples of every batch; `advance` is called after each."""
    sampling = Sampling(protocol.temperature, protocol.top_p, protocol.top_k, protocol.max_new_tokens)
    for batch in batches:
        seeds = [derived_seed(task.seed, task.problem.id, task.number) for task in batch]
        completions = engine.generate([list(task.prompt) for task in batch], sampling, seeds)
        verdicts: dict[tuple, dict[str, Any]] = {}
        for part in dict.fromkeys(task.part for task in batch):
            pairs = [(task, done) for task, done in zip(batch, completions, strict=True) if task.part == part]
            judged = suite.judge(part, [task.problem for task, _ in pairs], [done for _, done in pairs])
            verdicts |= {task.key: verdict for (task, _), verdict in zip(pairs, judged, strict=True)}
        names = ("part", "problem", "seed", "sample")
        store.append(
            {
                **dict(zip(names, task.key, strict=True)),
                **verdicts[task.key],
                "tokens": done.num_tokens,
                "finished": done.finished,
                "text": done.text,
            }
            for task, done in zip(batch, completions, strict=True)
        )
        advance()
