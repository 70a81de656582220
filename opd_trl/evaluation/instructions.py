"""Instructions of the IFEval kind, judged by the library `if-verifiable`, without network."""

import functools
import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


# They count sentences or split words with a model of NLTK's, which no package brings along.
NEED_PUNKT = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})
GET_PUNKT = "python -m nltk.downloader punkt_tab"


class Followed(NamedTuple):
    """Which instructions of a prompt an answer follows, one entry for each.

    Args:
        strict: the answer as it is.
        loose: the answer, or what is left of it without its first line, its last line or asterisks.
    """

    strict: list[bool]
    loose: list[bool]


def follow_instructions(
    prompt: str, instruction_ids: Sequence[str], kwargs: Sequence[dict[str, Any]], answer: str
) -> Followed:
    """Which of the instructions of a prompt one answer follows.

    Some checks take quadratic time in the length of a hostile answer, and the library logs whole answers:
    `InstructionJudge` calls this in processes of its own, within a limit.

    Args:
        prompt: what was asked; an instruction to repeat it needs the text.
        instruction_ids: e.g. `punctuation:no_comma`, see [`instruction_names`].
        kwargs: of each instruction; entries that are None are left out.
        answer: an empty one follows nothing.

    Raises:
        ValueError: an unknown instruction, or not one set of arguments for each.
        ImportError: if-verifiable is not installed.

    Source: Zhou et al. 2023, arXiv 2311.07911; the checks are the published ones, as the library carries them.

    Example:
        >>> follow_instructions("Say hello.", ["punctuation:no_comma"], [{}], "Hello there, you.")
        Followed(strict=[False], loose=[False])
    """
    registry = _registry()
    unknown = [name for name in instruction_ids if name not in registry]
    if unknown or len(kwargs) != len(instruction_ids):
        what = f"unknown instruction {unknown[0]!r}" if unknown else f"{len(kwargs)} sets of arguments"
        raise ValueError(f"{what} for {len(instruction_ids)} instructions. There are {', '.join(sorted(registry))}.")
    from if_verifiable.common import evaluate_instructions

    results, _ = evaluate_instructions(answer, list(instruction_ids), list(kwargs), prompt, registry)
    if not results:  # the library does not look at an empty answer
        return Followed([False] * len(instruction_ids), [False] * len(instruction_ids))
    return Followed([result.strict_pass for result in results], [result.loose_pass for result in results])


def instruction_names() -> list[str]:
    """The names of all instructions that can be judged."""
    return sorted(_registry())


def judgeable(instruction_ids: Iterable[str]) -> bool:
    """Can a prompt with these instructions be judged on this machine, as far as NLTK's data goes?"""
    return _has_punkt() or not NEED_PUNKT & set(instruction_ids)


@functools.cache
def _registry() -> dict[str, Any]:
    if importlib.util.find_spec("if_verifiable") is None:
        raise ImportError("judging IFEval's instructions needs if-verifiable: pip install 'opd_trl[rules]'.")
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0  # else it may judge the same text differently
    return INSTRUCTION_DICT


@functools.cache
def _has_punkt() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True
