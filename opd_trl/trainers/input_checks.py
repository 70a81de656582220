"""Everything that can be refused before a model is built or a file is written."""

from inspect import Parameter
from typing import Any

from datasets import IterableDataset
from torch import nn
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin
from trl.trainer.utils import get_config_model_id

from ..data.row_checks import RowChecks, RowError
from ..given import check_keywords
from ..models.forward import vocabulary_rows
from ..models.loading import ProcessingClass
from ..models.lora_folders import base_of, is_adapter, tokenizer_of_path
from ..privileged import check_column
from ..teachers.own import check_trained_beside
from ..teachers.several.routing import named_datasets
from ..teachers.text_ids import text_ids
from ..teachers.vocabulary import SharedIds, compare_vocabularies
from .config.config_checks import TOP_K_SUPPORTS, say_once
from .config.opd_config import OPDConfig
from .rewards import check_reward_funcs


#: Starts of `init_lora_weights` that change the base weights as an adapter is added.
REWRITE_THE_BASE = ("pissa", "olora", "corda", "loftq")


def check_args(
    trainer: type,
    model: Any,
    args: OPDConfig | None,
    reward_funcs: Any,
    others: dict[str, Any],
    *,
    known: dict[str, Parameter],
) -> OPDConfig:
    """Check the arguments of a trainer for their names and kinds; return `args`, or its default.

    Args:
        trainer: the class.
        model: the student.
        args, reward_funcs: as it takes them.
        others: its other keywords, most of which GRPOTrainer takes.
        known: all keywords that OPDTrainer and GRPOTrainer take.

    Raises:
        TypeError: a keyword that there is not, `args` of another trainer, or what is not a reward among the rewards.
        ValueError: `reward_weights` without rewards.
    """
    check_keywords(trainer.__name__, others, known)
    config_class = trainer.config_class
    if args is None:
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        args = config_class(f"{name.split('/')[-1]}-{trainer.__name__.removesuffix('Trainer')}")
    if not isinstance(args, config_class):
        raise TypeError(
            f"args must be of class {config_class.__name__}, got {type(args).__name__}. Change the class and keep the "
            f"arguments: {config_class.__name__} takes every field of GRPOConfig."
        )
    check_reward_funcs(reward_funcs, args, environment=others.get("environment_factory") is not None)
    return args


def check_data(checks: RowChecks, args: OPDConfig, train_dataset, eval_dataset, *, required: bool) -> None:
    """Look at every row that can be read in advance: enough of them, prompts, privileged contexts.

    Args:
        checks: what rows are checked against. Its view goes where the teacher sees no privileged context.
        args: where the privileged context comes from, and how many rows make a batch.
        train_dataset, eval_dataset: as the trainer takes them; of a stream the rows of the first batch are looked at.
        required: must there be a privileged context?

    Raises:
        TypeError: several splits as the training set.
        RowError: an empty data set, no prompt column, no privileged context where one is required, both a column and a
            shared text, fewer rows than one batch takes, or a row that cannot be trained on.
    """
    if isinstance(train_dataset, dict):  # datasets.DatasetDict is one
        splits = list(train_dataset)
        raise TypeError(
            f"train_dataset is a {type(train_dataset).__name__} of the splits {', '.join(map(repr, splits))}. Pass "
            f"one of them: train_dataset=dataset[{'train' if 'train' in splits else next(iter(splits), 'train')!r}]."
        )
    datasets = named_datasets(train_dataset, eval_dataset)
    for name, dataset in datasets.items():
        if hasattr(dataset, "__len__") and len(dataset) == 0:
            raise RowError(f"the {name} set is empty", "Check its path, its split and its filters.")
    used = [check_columns(args, name, x, required, checks.environment) for name, x in datasets.items()]
    if required and not (used or args.has_shared_context):
        raise RowError("there is no train set, so no row brings a privileged context", "Set privileged_context.")
    if not any(used or [args.has_shared_context]):
        checks.view = None
    for name, dataset in datasets.items():
        checks.check_set(dataset, name, num_first=rows_of_a_batch(args))
    if train_dataset is not None:
        check_count(args, len(checks.sets[0].sizes))


def check_columns(args: OPDConfig, name: str, dataset, required: bool, environment: bool) -> bool:
    """Refuse a data set that lacks a column or has one too many; does the teacher see a privileged context in it?"""
    columns, column, shared = column_names(dataset), args.privileged_context_column, args.has_shared_context
    if columns and "prompt" not in columns and not environment:
        raise RowError(
            f"the {name} set has no column 'prompt', it has {', '.join(map(repr, columns))}",
            "Rename the column that holds the text or messages which the student answers, and take a last, assistant "
            "turn off.",
        )
    if shared and columns is not None and column in columns:
        raise RowError(
            f"the {name} set has a column {column!r} and a shared privileged context is given too",
            "Remove privileged_context / privileged_context_file, or drop the column.",
        )
    if shared or args.sibling_context:  # a sibling's success comes before a column, which may be empty
        return True
    if required:
        try:
            check_column(columns, column)
        except ValueError as error:
            raise RowError(str(error)) from None
    return required or (columns is not None and column in columns)


def rows_of_a_batch(args: OPDConfig) -> int:
    """Rows of which one generation batch is made; TRL leaves out those that do not fill one."""
    return args.generation_batch_size // args.num_generations


def check_count(args: OPDConfig, count: int) -> None:
    """Refuse a training set of which not a single batch can be made: nothing would be trained, without an error."""
    needed = rows_of_a_batch(args)
    if count < needed:
        raise RowError(
            f"the train set has too few rows, {count}: one batch takes {needed} (per_device_train_batch_size "
            f"{args.per_device_train_batch_size} x processes {args.world_size} x steps_per_generation "
            f"{args.steps_per_generation} / num_generations {args.num_generations}), so nothing would be trained",
            f"Give at least {needed}, or lower per_device_train_batch_size or gradient_accumulation_steps.",
        )


def column_names(dataset) -> list[str] | None:
    """The columns of a data set; a stream that does not know its own is asked for its first row."""
    if isinstance(dataset, IterableDataset) and dataset.column_names is None:
        return list(next(iter(dataset), {}))
    return getattr(dataset, "column_names", None)


def check_peft(model, peft_config, args: OPDConfig) -> None:
    """Refuse adapters that scoring would ignore, or under which the teacher would be another model than it is said."""
    given = getattr(model, "peft_config", {})
    configs = [peft_config] if peft_config is not None else list(given.values())
    averages = args.teaches_itself and args.teacher_model_kind == "ema"
    if averages and given:
        check_trained_beside(model)
    for config in configs:
        if config.is_prompt_learning:
            raise ValueError(
                f"{config.peft_type.value} is a prompt-learning adapter: its virtual tokens live outside the backbone "
                "whose hidden states are scored, so they would be ignored. Use LoRA or another adapter in the layers."
            )
        targets = config.target_modules if hasattr(config, "target_modules") else None
        if targets is not None and not isinstance(targets, str) and "lm_head" in targets:
            raise ValueError(
                "an adapter on `lm_head` would be ignored: the loss reads the head's weight directly. Remove "
                "'lm_head' from target_modules, or train the whole head with modules_to_save=['lm_head']."
            )
        if averages and getattr(config, "bias", "none") != "none":
            raise ValueError(
                f"LoRA bias={config.bias!r} with teacher_model_kind='ema': such biases belong to the base model, and "
                "the average is one of the adapter alone. Set bias='none', or teacher_model_kind='base', which keeps "
                "a copy of the biases."
            )
        init = str(getattr(config, "init_lora_weights", ""))
        if given and args.beta != 0.0 and init.lower().startswith(REWRITE_THE_BASE):
            raise ValueError(
                f"init_lora_weights={init!r} with beta={args.beta}: the adapter of the reference model would be "
                "initialised in the same way, which rewrites the base weights a second time. Set beta=0, or "
                "init_lora_weights=True in the peft_config of the model, whose adapter is there already."
            )


def load_processing_class(model, args: OPDConfig) -> ProcessingClass:
    """The student's tokenizer or processor, as GRPOTrainer loads it."""
    source = tokenizer_of_path(model) if isinstance(model, str) else get_config_model_id(model.config)
    # A processor is not found beside an adapter, which has no config.json to name its class.
    return (AutoTokenizer if is_adapter(source) else AutoProcessor).from_pretrained(
        source,
        revision=(args.model_init_kwargs or {}).get("revision") if isinstance(model, str) else None,
        truncation_side="left",
        padding_side="left",
        trust_remote_code=args.trust_remote_code,
    )


def tokenizer_of(processing_class) -> PreTrainedTokenizerBase:
    """The tokenizer inside a processor, or the tokenizer itself."""
    return processing_class.tokenizer if isinstance(processing_class, ProcessorMixin) else processing_class


def model_config(model, *, trust_remote_code: bool = False, revision: str | None = None) -> Any:
    """The configuration of a model or of a path, without loading weights."""
    if isinstance(model, str):
        return AutoConfig.from_pretrained(base_of(model), trust_remote_code=trust_remote_code, revision=revision)
    return model.config


def text_config(model, **options: Any) -> Any:
    """The text configuration of a model or of a path; `options` as in `model_config`."""
    return model_config(model, **options).get_text_config()


def check_student(model, args: OPDConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without a token that ends an answer, and a support larger than the vocabulary."""
    if tokenizer.eos_token is None:
        raise RowError(
            "the tokenizer has no EOS token, so no answer would be seen to end",
            "Set the one that ends a turn of the student, e.g. tokenizer.eos_token = '<|im_end|>'.",
        )
    vocab_size = vocabulary_rows(text_config(model, trust_remote_code=args.trust_remote_code))
    if args.loss_support in TOP_K_SUPPORTS and args.loss_top_k > vocab_size:
        raise ValueError(
            f"loss_top_k must be at most the vocabulary of {vocab_size}, got {args.loss_top_k}. "
            "Use loss_support='full' for the whole vocabulary."
        )


def check_teacher(
    model,
    teacher,
    args: OPDConfig,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
) -> SharedIds:
    """Refuse a missing teacher, the student itself, and a teacher of another vocabulary; return the ids they share."""
    if teacher is None:
        raise ValueError(
            "OPDTrainer needs a teacher: pass teacher_model, or set teacher_model_name_or_path, teacher_server_url or "
            "teachers. For a student that teaches itself from a privileged context use OPSDTrainer (`opd-trl opsd`)."
        )
    if teacher is model and not isinstance(teacher, str):
        raise ValueError(
            "teacher_model is the student object itself; freezing it would stop training. Use OPSDTrainer with a "
            "privileged context, or pass a copy."
        )
    if isinstance(model, nn.Module) and isinstance(teacher, nn.Module):
        check_no_shared_weights(model, teacher)
    path = teacher if isinstance(teacher, str) else getattr(teacher.config, "_name_or_path", "")
    config = text_config(teacher, trust_remote_code=args.trust_remote_code, revision=args.teacher_model_revision)
    if teacher_tokenizer is None and path:
        teacher_tokenizer = AutoTokenizer.from_pretrained(
            tokenizer_of_path(path), revision=args.teacher_model_revision, trust_remote_code=args.trust_remote_code
        )
    student_rows = vocabulary_rows(text_config(model, trust_remote_code=args.trust_remote_code))
    teacher_rows = vocabulary_rows(config)
    if teacher_tokenizer is None and (teacher_rows != student_rows or args.teacher_vocabulary in ("shared", "text")):
        raise ValueError(
            "the teacher object has no path to load its tokenizer from, and it is needed: teacher_vocabulary is "
            f"{args.teacher_vocabulary!r}, the teacher has {teacher_rows} ids, the student {student_rows}. Pass "
            "teacher_processing_class, so that the ids can be compared."
        )
    theirs = tokenizer if teacher_tokenizer is None else teacher_tokenizer
    if args.teacher_vocabulary == "text":
        return text_ids(tokenizer, theirs, student_rows, teacher_rows)
    vocabularies = tokenizer.get_vocab(), theirs.get_vocab(), student_rows, teacher_rows
    ends = {"student_end": tokenizer.eos_token, "teacher_end": theirs.eos_token}
    return compare_vocabularies(*vocabularies, choice=args.teacher_vocabulary, **ends)


def check_shared_ids(args: OPDConfig, shared_ids: SharedIds) -> None:
    """Say what is left out; refuse importance weights whose two probabilities are normalised over different ids."""
    for note in shared_ids.notes:
        say_once(note)
    if args.loss_importance_cap is not None and shared_ids.left_out:
        raise ValueError(
            f"loss_importance_cap={args.loss_importance_cap} with a teacher that shares a part of the vocabulary: the "
            "student's tokens were sampled from all of it. Leave loss_importance_cap out."
        )


def check_top_k_is_shared(args: OPDConfig, shared_ids: SharedIds) -> None:
    """Refuse a support larger than what the student shares with all of its teachers."""
    if args.loss_support in TOP_K_SUPPORTS and args.loss_top_k > shared_ids.num_ids:
        raise ValueError(
            f"loss_top_k must be at most {shared_ids.num_ids}, the ids that the student shares with its teachers, got "
            f"{args.loss_top_k}. Use loss_support='full' for all of them."
        )


def check_no_shared_weights(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a teacher that holds tensors of the student: freezing it freezes them, training moves them."""
    own = {x.data_ptr() for x in student.parameters()} - {0}
    shared = [name for name, x in teacher.named_parameters() if x.data_ptr() in own]
    if shared:
        raise ValueError(
            f"teacher_model shares weights with the student, e.g. {shared[0]}: they would be frozen with the teacher, "
            "or move with the student. Pass a copy (copy.deepcopy), or let the student teach itself (OPSDTrainer)."
        )
