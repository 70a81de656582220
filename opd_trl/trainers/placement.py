"""Find the teachers that a run names, and build them: from paths, addresses, or the student itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from accelerate.utils import set_seed
from torch import nn
from trl.trainer.utils import get_config_model_id

from ..addresses import is_url, shown
from ..credentials import api_key
from ..models.forward import vocabulary_rows
from ..models.loading import load_whole, plain_models
from ..models.lora_folders import is_adapter, load_causal_lm, with_absolute_path
from ..teachers import ModelTeacher, Teacher, TeacherServer, TeacherServerError, self_teacher
from ..teachers.connect import LocalCopy, LossNeeds, connect
from ..teachers.several.mixed import MixedTeacher, check_mix
from ..teachers.text_teacher import TextTeacher
from ..teachers.vocabulary import SharedIds
from .config.config_checks import say_once
from .config.opd_config import OPDConfig
from .input_checks import check_shared_ids, check_teacher, check_top_k_is_shared, text_config


class TeacherError(ValueError):
    """A teacher that does not fit the student, the loss, the rows or the other arguments."""


@contextmanager
def teacher_errors() -> Iterator[None]:
    """What is refused of a teacher in this block is a `TeacherError`, which the command line shows in one line."""
    try:
        yield
    except ValueError as error:
        raise TeacherError(str(error)) from error


def find_teachers(
    named: dict[str, Any], model, args: OPDConfig, tokenizer, teacher_tokenizer
) -> dict[str, Callable[[], Teacher]]:
    """Check each teacher and connect to those that are served; before anything is loaded or written.

    Args:
        named: from `named_teachers`.
        model: the student.
        args: of the trainer.
        tokenizer, teacher_tokenizer: of the student; of the teachers, where a path does not tell.

    Returns:
        name -> what builds the teacher once the student is there.
    """
    check_loading_options(named, args)
    check_text(args)
    check_mix(args.teacher_mix, list(named))
    found, shared = {}, []
    for name, teacher in named.items():
        try:
            if is_url(teacher):
                served = served_teacher(name, teacher, model, args, tokenizer, teacher_tokenizer)
                if args.teacher_mix is not None and not served.gives_hidden_states:
                    raise ValueError(
                        f"the teacher server {shown(teacher)} sends its own TopK alone, and teacher_mix is a mean "
                        "of whole distributions. Serve the teacher with `opd-trl serve-teacher`."
                    )
                shared_ids = served.shared_ids
                found[name] = partial(lambda connected: connected, served)
            else:
                shared_ids = check_teacher(model, teacher, args, tokenizer, teacher_tokenizer)
                found[name] = partial(model_teacher, teacher, args, shared_ids)
            check_shared_ids(args, shared_ids)
            shared.append(shared_ids)
        except (ValueError, TeacherServerError) as error:
            if not name:
                raise
            kind = TeacherServerError if isinstance(error, TeacherServerError) else ValueError
            raise kind(f"teacher {name!r}: {error}") from error
    check_top_k_is_shared(args, SharedIds.of_all(shared))
    if args.teacher_mix is not None:
        return {"": partial(mixed_teacher, found, args)}
    return found


def check_loading_options(named: dict[str, Any], args: OPDConfig) -> None:
    """Raise ValueError for options of loading a teacher where none is loaded: ready models, and servers."""
    loaded = [teacher for teacher in named.values() if isinstance(teacher, str) and not is_url(teacher)]
    if loaded or args.teacher_model_name_or_path is not None or args.teacher_server_models is not None:
        return
    for name in ("teacher_model_init_kwargs", "teacher_model_revision"):
        if getattr(args, name) is not None and any(teacher is not None for teacher in named.values()):
            raise ValueError(
                f"{name}={getattr(args, name)!r} has no effect: no teacher is loaded here, it is a ready model or a "
                f"server. Remove {name}, or give the teacher as a path or hub id."
            )


def check_text(args: OPDConfig) -> None:
    """Raise ValueError for what a teacher of another tokenizer cannot be, or be used with."""
    refused = {
        "teacher_mix": args.teacher_mix is not None,
        "loss_baseline": args.loss_baseline is not None,
        "loss_extrapolation": args.loss_extrapolation != 1.0,
        "loss_importance_cap": args.loss_importance_cap is not None,
        "loss_position_weight": args.loss_position_weight is not None,
        "advantage_shaping": args.advantage_shaping is not None,
        "loss_tail: sample": args.loss_tail == "sample",
    }
    for what in (what for what, wanted in refused.items() if wanted and args.teacher_vocabulary == "text"):
        raise ValueError(
            f"teacher_vocabulary='text' with {what}: of a teacher of another tokenizer the loss knows distributions "
            "at single tokens and log-probabilities of texts, and nothing else. Leave that out, or choose a teacher "
            "of the student's tokenizer."
        )
    if args.teacher_vocabulary == "text" and args.loss_support != "sampled":
        say_once(
            f"teacher_vocabulary: text with loss_support: {args.loss_support} compares single tokens, and a token "
            "that begins a longer one of the other tokenizer is then pushed away. Where both cut text otherwise, set "
            "loss_support: sampled, which compares the text alone."
        )


def served_teacher(name: str, url: str, model, args: OPDConfig, tokenizer, teacher_tokenizer) -> Teacher:
    """Connect to a server under the limits and for the loss that the arguments name."""
    path = args.model_of_server(name)

    def load(path: str) -> nn.Module:
        with plain_models(args):
            return load_causal_lm(path, **{"device_map": None} | loading_options(args)).eval()

    return connect(
        TeacherServer(
            url,
            api_key=api_key(),
            timeout=args.teacher_server_timeout,
            retries=args.teacher_server_retries,
            concurrency=args.teacher_server_concurrency,
        ),
        needs=LossNeeds(args.loss_support, args.loss_top_k, args.loss_baseline, args.temperature_of_loss),
        tokenizer=tokenizer,
        student_rows=vocabulary_rows(text_config(model, trust_remote_code=args.trust_remote_code)),
        rows_per_request=args.teacher_batch_size or args.per_device_train_batch_size,
        device=args.device,
        local_copy=None if path is None else LocalCopy(path, loading_options(args), load),
        compares=args.distributed_state.is_main_process,
        vocabulary=args.teacher_vocabulary,
        teacher_tokenizer=teacher_tokenizer,
    )


def load_student(model, args: OPDConfig, kwargs: dict[str, Any]):
    """The student as GRPOTrainer takes it: an adapter's folder is loaded, a local folder named by its absolute path.

    What loading takes of `args` and of the trainer's `kwargs` is left out of them then: TRL warns that it ignores it.
    """
    if not is_adapter(model):
        return with_absolute_path(model)
    if kwargs.get("peft_config") is not None:
        raise ValueError(
            f"the student {model!r} is a LoRA adapter, and a new one is asked for (peft_config, use_peft). Leave that "
            "out to train the adapter further, or merge it into its base first (merge_and_unload)."
        )
    set_seed(args.seed)
    options = {"trust_remote_code": args.trust_remote_code} | dict(args.model_init_kwargs or {})
    if (quantization := kwargs.pop("quantization_config", None)) is not None:
        options["quantization_config"] = quantization
    args.model_init_kwargs = None
    loaded = load_whole(model, args.distributed_state.distributed_type, is_trainable=True, **options)
    return with_absolute_path(loaded)


def loading_options(args: OPDConfig) -> dict[str, Any]:
    """How a separate teacher is loaded: in its checkpoint's dtype, unless `teacher_model_init_kwargs` has another."""
    revision = {} if args.teacher_model_revision is None else {"revision": args.teacher_model_revision}
    given = args.teacher_model_init_kwargs or {}
    return {"dtype": "auto", "trust_remote_code": args.trust_remote_code} | revision | dict(given)


def load_teacher(path: str, args: OPDConfig) -> nn.Module:
    """Load a separate teacher; see `loading_options`."""
    return load_whole(path, args.distributed_state.distributed_type, **loading_options(args))


def model_teacher(teacher: Any, args: OPDConfig, shared_ids: SharedIds) -> Teacher:
    """A teacher in this process, from a model or from a path."""
    model = load_teacher(teacher, args) if isinstance(teacher, str) else teacher
    if shared_ids.reads_text:
        return TextTeacher(ModelTeacher(model, shared_ids=SharedIds(shared_ids.pairs[0].teacher_rows)), shared_ids)
    return ModelTeacher(model, shared_ids=shared_ids)


def mixed_teacher(found: dict[str, Callable[[], Teacher]], args: OPDConfig) -> Teacher:
    """All of the teachers as one."""
    return MixedTeacher({name: build() for name, build in found.items()}, args.teacher_mix, args.teacher_mean)


def own_teacher(trainer, *, kind: str, rate: float, initial_copy: nn.Module | None, **options: Any) -> Teacher:
    """A teacher made of the student; see `self_teacher`, which takes `options`."""
    student = trainer.accelerator.unwrap_model(trainer.model)
    if initial_copy is None and kind != "live" and not hasattr(student, "peft_config"):
        args = trainer.args
        kwargs = {"trust_remote_code": args.trust_remote_code} | dict(args.model_init_kwargs or {})
        path = get_config_model_id(student.config)
        initial_copy = load_whole(path, args.distributed_state.distributed_type, **kwargs)
    return self_teacher(student, kind=kind, update_rate=rate, initial_copy=initial_copy, **options)
