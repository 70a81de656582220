"""Do both models read and write what they were made for? Prompts, chat templates, EOS, padding, lengths."""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..contents import texts_of
from ..data.template_checks import FAILURES
from ..models.sequences import unpadded
from ..models.transformers_engine import end_ids
from ..trainers.looks.rollouts import Rollout
from ..trainers.readable import limit_of
from .findings import OURS, Finding
from .prompt_panels import PromptPanels, first_prompts
from .state import Preflight


# Where an assistant's text ends in a rendered conversation.
MARK = "0123456789"
THINKING = ("<think>", "[think]")
# Characters at the end of a prompt in which a thinking block may be opened.
END = 64
# Share of the contexts that end at exactly the length of the longest, from which they look cut; shorter ones than so
# many characters do not: they are answers such as 42.
CUT_SHARE, LEAST_CUT, SHORTEST_CUT = 0.1, 3, 40
# Share of completions that are cut off at max_completion_length.
CUT_OFF = 0.5


def run(preflight: Preflight) -> list[Finding]:
    """Look at the prompts of both models and at how the student's answers end."""
    trainer, rollouts = preflight.trainer, preflight.rollouts
    preflight.details["prompts"] = first_prompts(trainer, rollouts[0])
    ended = [ended_by_itself(trainer, rollout) for rollout in rollouts]
    return [*check_templates(trainer, rollouts), judge_endings(1 - sum(map(sum, ended)) / sum(map(len, ended)))]


def table(figures: dict[str, Any]) -> PromptPanels | None:
    """Both prompts side by side."""
    return PromptPanels(figures["prompts"]) if "prompts" in figures else None


def check_templates(trainer, rollouts: Sequence[Rollout]) -> list[Finding]:
    """All findings about prompts and tokenizers; one teacher is looked at, the first of several."""
    rows = [row for rollout in rollouts for row in rollout.rows]
    student = [ids for rollout in rollouts for ids in unpadded(rollout.batch, "prompt")]
    differ = "teacher_prompt_ids" in rollouts[0].batch
    teacher = [ids for r in rollouts for ids in unpadded(r.batch, "teacher_prompt")] if differ else student
    readers = [trainer.teacher_prompts.tokenizer_of(r.batch, row) for r in rollouts for row in range(len(r.rows))]
    read = [tokenizer.decode(ids) for tokenizer, ids in zip(readers, teacher, strict=True)]
    own = teacher_tokenizer(trainer)
    findings = [
        check_vocabulary(trainer, own),
        check_turn_end(trainer, rows),
        check_pad(trainer.tokenizer),
        check_thinking(trainer.tokenizer.decode(student[0]), read[0]),
        check_lengths(trainer, student, teacher),
    ]
    if own is not None:
        findings += [check_eos(trainer, own), check_teacher_template(trainer, own, rows, teacher)]
    if trainer.teacher_prompts.view is not None:
        findings += check_contexts(trainer, rows, read, statistics.mean(map(len, teacher)))
    return [finding for finding in findings if finding is not None]


def teacher_tokenizer(trainer) -> PreTrainedTokenizerBase | None:
    """The separate teacher's own tokenizer; None where it is the student, has no path, or reads text by its own."""
    path = getattr(getattr(trainer.teacher.parts[0].model, "config", None), "_name_or_path", None)
    if trainer.args.teaches_itself or not path or trainer.shared_ids.reads_text:
        return None
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trainer.args.trust_remote_code)
    except (OSError, ValueError):
        return None


def check_vocabulary(trainer, own: PreTrainedTokenizerBase | None) -> Finding:
    """Building the trainer has compared both vocabularies id by id; this says over how many rows."""
    size, left_out = len(trainer.tokenizer), trainer.shared_ids.left_out
    said = f"{size:,} tokens, {trainer.num_rows:,} rows of both heads compared"
    sentence = "share one tokenizer." if own is None else "mean the same token by the same id, id by id."
    if left_out:
        said = f"shared: {size - left_out:,} of {size:,} tokens compared, {1 - left_out / size:.2%}"
        sentence = "differ: from a token on that the teacher does not know, a row has no loss."
    if trainer.shared_ids.reads_text:
        said = f"text: {size - left_out:,} of {size:,} tokens have the bytes of one of the teacher's"
        sentence = "have two tokenizers: the teacher reads the student's answers as text, in its own chat template."
    return Finding("vocabulary", "ok", said, f"Student and teacher {sentence}")


def check_turn_end(trainer, rows: Sequence[dict[str, Any]]) -> Finding | None:
    """Is the token that ends an assistant's turn in the chat template one that generation stops at?"""
    tokenizer = trainer.tokenizer
    if isinstance(rows[0]["prompt"], str) or (token := turn_end(tokenizer)) is None:
        return None
    ends = end_ids(trainer.model.generation_config.eos_token_id, tokenizer.eos_token_id)
    shown = tokenizer.convert_ids_to_tokens(token)
    if token in ends and token == tokenizer.eos_token_id:
        return Finding("EOS", "ok", shown, "The chat template ends a turn with the student's EOS token.")
    return Finding(
        "EOS",
        "stop",
        f"the template ends a turn with {shown}, EOS is {tokenizer.eos_token}",
        "The student's template ends a turn with a token that is not its EOS: no answer is seen to end.",
        change=f"eos_token {shown} in the student's tokenizer_config.json and generation_config.json; base models: "
        "SFT first",
    )


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The first special token after an assistant's text, as the chat template renders it."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": MARK}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except FAILURES:  # a template may refuse such messages
        return None
    if MARK not in text:
        return None
    after = tokenizer.encode(text.rsplit(MARK, 1)[1], add_special_tokens=False)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return next((token for token in after if token in special), None)


def check_pad(tokenizer: PreTrainedTokenizerBase) -> Finding:
    """pad == eos hides the EOS from losses that mask by the pad id; here masks come from lengths."""
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        return Finding("padding", "ok", f"pad {tokenizer.pad_token}", "The pad token is not the EOS token.")
    sentence = "Pad is EOS; masks end at the first EOS, so the student still learns to stop."
    return Finding("padding", "ok", f"pad = eos = {tokenizer.eos_token}", sentence)


def check_eos(trainer, own: PreTrainedTokenizerBase) -> Finding:
    """Do student and teacher stop at a common token?"""
    of_student = end_ids(trainer.model.generation_config.eos_token_id, trainer.tokenizer.eos_token_id)
    of_teacher = end_ids(trainer.teacher.parts[0].model.generation_config.eos_token_id, own.eos_token_id)
    names = [" ".join(map(str, trainer.tokenizer.convert_ids_to_tokens(ids))) for ids in (of_student, of_teacher)]
    if trainer.tokenizer.eos_token_id in of_teacher:
        return Finding("EOS of both", "ok", names[0], "Both models end their answers with the student's EOS token.")
    return Finding(
        "EOS of both",
        "fix",
        f"student {names[0]}, teacher {names[1]}",
        "The teacher ends its answers with another token than the student: it pushes the student's EOS down, and "
        "lengths explode.",
        change=f"a teacher that ends with {trainer.tokenizer.eos_token} (base and instruct models differ), or set "
        "eos_token of the student to the teacher's",
    )


def check_teacher_template(
    trainer, own: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], teacher: Sequence[list[int]]
) -> Finding | None:
    """Does the teacher read the template that it was trained with? The student's tokenizer renders for both."""
    view, prompt = trainer.teacher_prompts.view, rows[0]["prompt"]
    if view is not None:
        prompt = view.prompts(rows[:1], ["the first row"])[0]
    if isinstance(prompt, str) or not own.chat_template:
        return None
    kwargs = trainer.teacher_prompts.template_kwargs or {}
    try:
        rendered = own.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **kwargs)
    except FAILURES as error:
        return Finding(
            "teacher's template",
            "fix",
            f"refuses the roles {', '.join(turn['role'] for turn in prompt)}: {error}",
            "The teacher reads the student's chat template, and its own knows no such prompts.",
            change=("privileged_builder: hint, which writes into the user's turn", "prompts without a system turn"),
        )
    ids = own.encode(rendered, add_special_tokens=False)
    if ids == teacher[0]:
        return Finding(
            "teacher's template", "ok", "the same ids", "The teacher reads the template of its own tokenizer."
        )
    at = next(
        (i for i, (a, b) in enumerate(zip(ids, teacher[0], strict=False)) if a != b), min(len(ids), len(teacher[0]))
    )
    theirs, given = (trainer.tokenizer.decode(x[at : at + 12]) for x in (ids, teacher[0]))
    return Finding(
        "teacher's template",
        "fix",
        f"differs from token {at + 1}: {given!r} in place of {theirs!r}",
        "The teacher reads the student's chat template, and its own renders the same prompt otherwise.",
        change="teacher_chat_template_kwargs, or the teacher's chat_template in the student's tokenizer",
    )


def check_thinking(student: str, teacher: str) -> Finding:
    """Do both prompts open, or close, a thinking block alike at their end?"""
    tails = [student[-END:], teacher[-END:]]
    modes = [next((tag for tag in THINKING if tag in tail), None) for tail in tails]
    closed = ["</think>" in tail for tail in tails]
    if (modes[0], closed[0]) == (modes[1], closed[1]):
        return Finding("thinking", "ok", modes[0] or "none", "Both prompts end in the same thinking mode.")
    return Finding(
        "thinking",
        "fix",
        f"student {tails[0][-24:]!r}, teacher {tails[1][-24:]!r}",
        "One prompt opens a thinking block and the other does not: the student learns to write malformed tags.",
        change="teacher_chat_template_kwargs: the enable_thinking of chat_template_kwargs, or loss_skip_first: "
        "['<think>']",
    )


def check_lengths(trainer, student: Sequence[list[int]], teacher: Sequence[list[int]]) -> Finding:
    """Do prompts and completions fit the windows of both models?"""
    longest, of_teacher = max(map(len, student)), max(map(len, teacher))
    figure = f"student {longest}, teacher {of_teacher} tokens, completions {trainer.max_completion_length}"
    limits = (("student's", longest, limit_of(trainer)[0]), ("teacher's", of_teacher, trainer.teacher_prompts.limit))
    known = [(f"{whose} prompt", length, limit) for whose, length, limit in limits if limit is not None]
    threshold = ", ".join(f"{name} at most {limit}" for name, _, limit in known)
    for name, length, limit in known:
        if length > limit:
            sentence = f"A {name} and its completion are longer than the models can read."
            change = f"max_completion_length: {length - limit} less, or filter long prompts out"
            return Finding("prompt length", "stop", figure, sentence, threshold, change)
    return Finding("prompt length", "ok", figure, "Everything fits; nothing is cut.", threshold=threshold)


def check_contexts(trainer, rows: Sequence[dict[str, Any]], read: Sequence[str], tokens: float) -> list[Finding]:
    """Does the teacher read the whole privileged context in its prompts, which have so many tokens in the mean?"""
    view = trainer.teacher_prompts.view
    contexts = [texts_of(view.shared or row.get(view.column)) for row in rows]
    missing = []
    for texts, prompt in zip(contexts, read, strict=True):
        rendered = squeezed(prompt)
        lost = sum(len(squeezed(text)) for text in texts if squeezed(text) not in rendered)
        missing.append(lost / max(1, sum(len(squeezed(text)) for text in texts)))
    share = sum(missing) / len(missing)
    if share > 0 and ":" not in trainer.args.privileged_builder:  # a builder of one's own may word it anew
        findings = [
            Finding(
                "privileged context",
                "stop",
                f"{1 - share:.0%} of it is in the teacher's prompt",
                "The teacher does not read the whole privileged context: the chat template leaves it out or cuts it.",
                change=(
                    "privileged_builder: hint",
                    "a chat template that renders system messages whole (chat_template of the tokenizer)",
                ),
            )
        ]
    else:
        figure = f"all of it, in prompts of {tokens:.0f} tokens on average"
        findings = [Finding("privileged context", "ok", figure, "The teacher reads the whole privileged context.")]
    if view.shared is None:
        findings += look_for_a_cut([sum(map(len, texts)) for texts in contexts])
    return findings


def look_for_a_cut(lengths: Sequence[int]) -> list[Finding]:
    """A finding where many contexts have exactly the length of the longest, as after a cut at a limit.

    >>> look_for_a_cut([100, 100, 100, 40])[0].verdict, look_for_a_cut([100, 80, 60, 40])
    ('fix', [])
    >>> look_for_a_cut([2, 2, 2, 1])
    []
    """
    longest, count = max(lengths), Counter(lengths)[max(lengths)]
    if longest < SHORTEST_CUT or count < LEAST_CUT or count / len(lengths) < CUT_SHARE or len(set(lengths)) == 1:
        return []
    return [
        Finding(
            "length of contexts",
            "fix",
            f"{count} of {len(lengths)} have exactly {longest} characters",
            "The privileged contexts look cut off before they came here.",
            change="privileged_context_column: one whose texts are whole",
        )
    ]


def squeezed(text: str) -> str:
    """A text without white space, which templates and tokenizers may change."""
    return "".join(text.split())


def judge_endings(cut_off: float) -> Finding:
    """Do completions end by themselves?"""
    figure, threshold = f"{cut_off:.0%}", f"below {CUT_OFF:.0%} ({OURS})"
    name = "completions cut off"
    if cut_off < CUT_OFF:
        return Finding(name, "ok", figure, "Most completions end by themselves.", threshold, value=cut_off)
    sentence = "Most completions are cut off before their end, which the student then hardly learns."
    change: tuple[str, ...] = ("max_completion_length: longer", "mask_truncated_completions: true")
    if cut_off == 1:
        sentence = "No completion ends by itself. Look whether the student knows its EOS token."
        change = (*change, "for a base model SFT with the chat template first")
    return Finding(name, "fix", figure, sentence, threshold, change, cut_off)


def ended_by_itself(trainer, rollout: Rollout) -> list[bool]:
    """Which completions hold an EOS token."""
    ids, mask = rollout.batch["completion_ids"], rollout.batch["completion_mask"].bool()
    return ((ids == trainer.tokenizer.eos_token_id) & mask).any(-1).tolist()
