"""Who speaks in `opd-trl chat`: a trained model, the one that it was trained from, and its teacher."""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..models.loading import is_slow_in_bfloat16, load_model, load_tokenizer
from ..models.lora_folders import is_adapter, tokenizer_of_path
from ..models.provenance import check_model
from ..models.sampling import Completion, Sampling
from ..models.transformers_engine import TransformersEngine, token_ids
from ..privileged import TEMPLATES, Prompt, get_builder, read_shared_context
from ..reports.run_log import FOLDER, read_sessions


Message = dict[str, Any]


@dataclass
class Speaker:
    """A model and its own side of a conversation.

    Attributes:
        name: `before`, `after` or `teacher`; `model` where nobody has trained it here.
        engine: the model.
        sampling: how it answers.
        without_adapter: speaks the model under the adapter?
        view: what it reads of the conversation.
        template_kwargs: of the chat template.
        messages: the conversation so far.
    """

    name: str
    engine: TransformersEngine
    sampling: Sampling
    without_adapter: bool = False
    view: Callable[[list[Message]], Prompt] = list
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)

    def say(self, question: str, seed: int, tell: Callable[[str], None]) -> Completion:
        """Answer, and tell the answer piece by piece.

        Raises:
            ValueError: the conversation and the longest answer are longer than the model's window.
        """
        tokenizer = self.engine.tokenizer
        asked: Any = [*self.messages, {"role": "user", "content": question}]
        read = self.view(asked if tokenizer.chat_template else question)
        prompt = token_ids(tokenizer, read, self.template_kwargs)
        window, longest = self.engine.context_length, self.sampling.max_new_tokens
        if window is not None and len(prompt) + longest > window:
            raise ValueError(
                f"the conversation has {len(prompt)} tokens; with an answer of {longest} that is more "
                f"than the model's window of {window}. Type /new, or give a smaller --max-new-tokens."
            )
        off = self.engine.model.disable_adapter() if self.without_adapter else nullcontext()
        with off:
            said = self.engine.stream(prompt, self.sampling, seed, tell)
        self.messages = [*asked, {"role": "assistant", "content": said.text}]
        return said

    def forget(self) -> None:
        """Begin anew, behind the system message where there is one."""
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]


def run_of(folder: Path) -> dict[str, Any]:
    """What the run log says of the run that has written a model: its last session, empty where there is no log."""
    for home in (folder, folder.parent):
        if sessions := read_sessions(home / FOLDER / "run.json"):
            return sessions[-1]
    return {}


def load_speakers(args: argparse.Namespace) -> list[Speaker]:
    """The models that a command line asks for, `before` first.

    Raises:
        ValueError: a model or a context that is not there or cannot be read; no context to show a teacher with.
    """
    check("the model", args.model)
    run, adapter = run_of(Path(args.model).expanduser()), is_adapter(args.model)
    config = run.get("config", {})
    before = None if args.only else args.before or (None if adapter else run.get("student"))
    if before and not args.before and before.startswith("/") and not Path(before).is_dir():
        raise ValueError(f"the run began from {before}, which is not there any more. Give --before MODEL, or --only.")
    wants_teacher = args.teacher or args.context
    other = (args.teacher if isinstance(args.teacher, str) else config.get("teacher_model_name_or_path")) or None
    other = other if wants_teacher else None
    for option, model in {"--before": before, "--teacher": other}.items():
        if model:
            check(option, model)
    view = teacher_view(args, config, is_needed=other is None) if wants_teacher else list

    after = load(args.model, args.dtype)
    system = [{"role": "system", "content": args.system}] if args.system else []
    sampling = Sampling(args.temperature, 1.0, 0, args.max_new_tokens)
    options = {"template_kwargs": config.get("chat_template_kwargs") or {}, "messages": system}
    speakers = []
    if not args.only and (before or adapter):
        base = load(before, args.dtype) if before else after
        speakers = [Speaker("before", base, sampling, without_adapter=not before, **options)]
    speakers.append(Speaker("after" if run or before or adapter else "model", after, sampling, **options))
    if other:
        speakers.append(Speaker("teacher", load(other, args.dtype), sampling, view=view, **options))
    elif wants_teacher:
        base = speakers[0]
        speakers.append(Speaker("teacher", base.engine, sampling, base.without_adapter, view, **options))
    return speakers


def check(option: str, model: str) -> None:
    """Raise ValueError where a path is meant that is not there, or holds neither a model nor an adapter."""
    check_model(model, option=option, needs="adapter_config.json" if is_adapter(model) else "config.json")


def load(model: str, dtype: str | None) -> TransformersEngine:
    """A model, in the precision that this machine is fast in, behind an engine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_model(model, dtype=dtype or ("float32" if is_slow_in_bfloat16(device) else "auto"), device=device)
    return TransformersEngine(loaded, load_tokenizer(tokenizer_of_path(model)))


def teacher_view(args: argparse.Namespace, config: dict[str, Any], *, is_needed: bool) -> Callable[[Any], Prompt]:
    """What the teacher reads of a conversation: it stands behind the context of `--context`, or that of the run.

    Without a context it is the conversation itself, or a ValueError where one is needed.
    """
    if args.context:
        context = read_shared_context(None, args.context)
        name, template = "system_prompt" if isinstance(context, str) else "few_shot", None
    else:
        context = read_shared_context(config.get("privileged_context"), config.get("privileged_context_file"))
        name, template = config.get("privileged_builder", "system_prompt"), config.get("privileged_template")
    if context is None and is_needed:
        raise ValueError(
            "--teacher: the run names no teacher, and no privileged context that all of its rows share. Give one: "
            "--teacher MODEL or --context FILE."
        )
    if context is not None and name not in TEMPLATES:  # a run log may come from anybody, and this would run its code
        raise ValueError(
            f"--teacher: the run built its prompts with {name}, which is not imported here. Give --context."
        )
    if context is None:
        return list
    build = get_builder(name, template=template)
    return lambda prompt: build(prompt, context)
