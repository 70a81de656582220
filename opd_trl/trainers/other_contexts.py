"""Another row's privileged context in place of a row's own: `shuffle_privileged_context`."""

import json
import random
from typing import Any

from datasets import Dataset

from ..data.prompts import RowError
from ..privileged import check_column, check_context
from .config.opd_config import OPDConfig


#: Draws for a row before all rows are looked through.
DRAWS = 100


def with_other_contexts(args: OPDConfig, dataset: Any, name: str) -> Any:
    """A data set in which each row has the context of another one, where `shuffle_privileged_context` says so.

    The other row asks another prompt and has another context. Which one it is depends on `data_seed` (`seed` where it
    is unset) and the data set alone, so that all processes, epochs and resumed runs agree.

    Args:
        args: the seed, and the column.
        dataset: of `datasets`, a mapping of several, or None.
        name: what errors call it.

    Raises:
        RowError: no column, a stream, an empty context, or a row for which there is no other one.
    """
    if not args.shuffle_privileged_context or dataset is None:
        return dataset
    if isinstance(dataset, dict):
        return {part: with_other_contexts(args, rows, part) for part, rows in dataset.items()}
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
        raise RowError(
            f"shuffle_privileged_context draws from all rows, and the {name} set is a stream, or makes its rows as "
            "they are read",
            "Load it whole (streaming: false), with its privileged contexts in a column.",
        )
    column, plain = args.privileged_context_column, dataset.with_format(None)
    try:
        check_column(dataset.column_names, column)
        contexts = [
            check_context(value, column=column, row=f"row {row} of the {name} set")
            for row, value in enumerate(plain[column])
        ]
    except ValueError as error:
        raise RowError(str(error)) from None
    seed = args.seed if args.data_seed is None else args.data_seed
    prompts = plain["prompt"] if "prompt" in dataset.column_names else range(len(contexts))
    others = other_rows([as_text(x) for x in prompts], [as_text(x) for x in contexts], seed=f"{seed} {name}")
    if None in others:
        raise RowError(
            f"no other prompt of the {name} set has another privileged context than this row",
            "shuffle_privileged_context needs at least 2 prompts with 2 distinct contexts: leave it out, or give more "
            "rows.",
            where=f"row {others.index(None)} of the {name} set",
        )
    drawn = [contexts[other] for other in others]
    return dataset.remove_columns(column).add_column(column, drawn, feature=dataset.features[column])


class OtherContexts:
    """The part of a trainer that gives rows another context in evaluations of a data set of their own, too."""

    def evaluate(self, eval_dataset=None, *args, **kwargs):
        given = eval_dataset  # a mapping comes back part by part, a name means one of the trainer's own
        own = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        if not isinstance(given, str | dict) and not any(given is dataset for dataset in own):
            given = with_other_contexts(self.args, given, "eval")
        return super().evaluate(given, *args, **kwargs)


def other_rows(prompts: list[str], contexts: list[str], *, seed: str) -> list[int | None]:
    """For each row one of those that differ from it in prompt and context, each as likely; None where there is none.

    >>> other_rows(["1 + 1?", "1 + 1?", "2 + 2?"], ["two", "2", "four"], seed="0 train")[:2]
    [2, 2]
    >>> other_rows(["a", "b"], ["same", "same"], seed="0 train")
    [None, None]
    """
    draw, count = random.Random(seed), len(prompts)

    def fits(row: int, other: int) -> bool:
        return prompts[row] != prompts[other] and contexts[row] != contexts[other]

    found: list[int | None] = []
    for row in range(count):
        tries = (other for other in (draw.randrange(count) for _ in range(DRAWS)) if fits(row, other))
        other = next(tries, None)
        if other is None:  # few rows fit, or none
            left = [other for other in range(count) if fits(row, other)]
            other = draw.choice(left) if left else None
        found.append(other)
    return found


def as_text(value: Any) -> str:
    """A prompt or context, text or messages, as what it is compared by."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
