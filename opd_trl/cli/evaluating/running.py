"""Draw and judge the samples that are missing, batch by batch, each on the disk before the next."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ...models.sampling import Engine, Sampling, derived_seed
from ...suites.problems import Problem
from ...suites.protocol import Protocol
from ...suites.store import Sample, Store
from .prompts import encode, messages_of


@dataclass(frozen=True)
class Task:
    """One sample to draw."""

    part: str
    problem: Problem
    seed: int
    number: int
    prompt: tuple[int, ...]

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.part, self.problem.id, self.seed, self.number


def plan(suite: Any, protocol: Protocol, tokenizer: Any, context: Any, limit: int | None) -> list[Task]:
    """Every sample of an evaluation, prompts of one length together and the longest first: what does not fit into
    memory fails at once.

    Raises:
        ValueError: a prompt with the longest answer is longer than `limit`, the model's context.
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
    """Batches with a sample that is not there. They are cut before looking, so that a resumed run draws what one that
    was never ended would have."""
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
    """Generate, judge and write every batch."""
    sampling = Sampling(protocol.temperature, protocol.top_p, protocol.top_k, protocol.max_new_tokens)
    for batch in batches:
        seeds = [derived_seed(task.seed, task.problem.id, task.number) for task in batch]
        completions = engine.generate([list(task.prompt) for task in batch], sampling, seeds)
        verdicts: dict[tuple, dict[str, Any]] = {}
        for part in dict.fromkeys(task.part for task in batch):
            pairs = [(task, done) for task, done in zip(batch, completions, strict=True) if task.part == part]
            judged = suite.judge(part, [task.problem for task, _ in pairs], [done for _, done in pairs])
            verdicts |= {task.key: verdict for (task, _), verdict in zip(pairs, judged, strict=True)}
        store.append(_sample(task, done, verdicts[task.key]) for task, done in zip(batch, completions, strict=True))
        advance()


def _sample(task: Task, completion: Any, verdict: dict[str, Any]) -> Sample:
    part, problem, seed, number = task.key
    return {
        "part": part,
        "problem": problem,
        "seed": seed,
        "sample": number,
        **verdict,
        "tokens": completion.num_tokens,
        "finished": completion.finished,
        "text": completion.text,
    }


def score(texts: dict[str, str], tokenizer: Any, model: Any, store: Store) -> None:
    """Score the texts of the retention suite that are missing."""
    from ...evaluation.perplexity import score_texts
    from ...suites.retention_suite import TEXTS
    from .engines import make_scorer

    todo = {name: text for name, text in texts.items() if (TEXTS, name, 0, 0) not in store.samples}
    scores = score_texts(list(todo.values()), tokenizer, make_scorer(model)) if todo else []
    store.append(
        {"part": TEXTS, "problem": name, "seed": 0, "sample": 0, "nats": nats, "tokens": tokens, "bytes": size}
        for name, (nats, tokens, size) in zip(todo, scores, strict=True)
    )


@contextlib.contextmanager
def progress(title: str, total: int, console: Any) -> Iterator[Callable[[], None]]:
    """A progress bar over batches, where somebody looks."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
