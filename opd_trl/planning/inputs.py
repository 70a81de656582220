"""From a parsed recipe to the workload that is sized."""

from argparse import Namespace

from trl import ModelConfig

from ..scripts.common import model_init_kwargs
from ..teachers.routing import is_routed, named_teachers
from ..trainers.config import OPDConfig
from ..trainers.config_checks import is_url
from .component import GIB
from .model_size import adapter_parameters, build, measure, read_config
from .workload import Teacher, Workload


def read_workload(training: OPDConfig, model_args: ModelConfig, own: Namespace, *, on_cpu: bool) -> Workload:
    """Put the fields of a recipe together with the sizes of its models.

    Args:
        training: an OPDConfig or OPSDConfig.
        model_args: TRL's ModelConfig.
        own: the flags of `opd-trl plan`.
        on_cpu: does the recipe train on a CPU?

    Raises:
        ValueError: a config.json that cannot be read or sized, or a length that is missing.
    """
    if training.max_completion_length is None:
        raise ValueError("max_completion_length is not set. Set it to the longest completion in tokens.")
    remote = training.trust_remote_code
    name, flag = model_args.model_name_or_path, "--student-config DIR"
    config = read_config("student", name, own.student_config, flag=flag, trust_remote_code=remote)
    student = build(config, trust_remote_code=remote)
    quantization = {name: getattr(model_args, name) for name in ("load_in_4bit", "load_in_8bit")}
    return Workload(
        student=measure(student, dtype=model_init_kwargs(training, model_args)["dtype"], quantization=quantization),
        teachers=read_teachers(training, own.teacher_config or []),
        teacher_kind=getattr(training, "teacher_model_kind", "model"),
        loss_support=training.loss_support,
        loss_top_k=training.loss_top_k,
        use_peft=model_args.use_peft,
        adapter_parameters=adapter_parameters(student, model_args),
        mixed_precision=training.bf16 or training.fp16,
        eight_bit_optimizer="8bit" in training.optim,
        reference_model=training.beta != 0.0,
        extrapolates=training.loss_extrapolation != 1.0,
        teacher_offload=training.teacher_offload is not None,
        teacher_batch_size=training.teacher_batch_size,
        batch_size=training.per_device_train_batch_size,
        generation_batch_size=training.per_device_train_batch_size * training.steps_per_generation,
        prompt_length=own.prompt_length,
        teacher_prompt_length=training.max_teacher_prompt_length or own.prompt_length,
        completion_length=training.max_completion_length,
        gradient_checkpointing=training.gradient_checkpointing,
        attention=model_args.attn_implementation or "sdpa",
        loss_memory_mib=training.loss_memory_mib,
        generation=training.vllm_mode if training.use_vllm else "transformers",
        vllm_share=training.vllm_gpu_memory_utilization,
        vllm_sleeps=training.vllm_enable_sleep_mode,
        gather_for_generation=training.ds3_gather_for_generation,
        gpu_memory=own.gpu_memory * GIB,
        device="cpu" if on_cpu else "cuda",
    )


def read_teachers(training: OPDConfig, given: list[str]) -> tuple[Teacher, ...]:
    """Size the separate teachers; none where the student is its own.

    Args:
        training: names them.
        given: of `--teacher-config`, a folder, or `name=folder` for each of several teachers.

    Raises:
        ValueError: a folder for a teacher that there is not, or no config.json of a teacher in this job.
    """
    if hasattr(training, "teacher_model_kind"):
        if given:
            raise ValueError(
                f"--teacher-config {' '.join(given)} is given, but without a separate teacher in the recipe the "
                "student is its own teacher. Name one in the recipe or as a flag, or leave --teacher-config out."
            )
        return ()
    named = named_teachers(None, training)
    folders = teacher_folders(given, list(named))
    return tuple(read_teacher(training, name, teacher, folders.get(name)) for name, teacher in named.items())


def teacher_folders(given: list[str], names: list[str]) -> dict[str, str]:
    """Name of a teacher -> folder of its config.json.

    >>> teacher_folders(["qwen3-8b"], [""])
    {'': 'qwen3-8b'}
    >>> teacher_folders(["math=qwen3-8b"], ["math", "code"])
    {'math': 'qwen3-8b'}
    """
    if not is_routed(names) and len(given) == 1:
        return {"": given[0]}
    folders = {}
    for text in given:
        name, _, folder = text.partition("=")
        if name not in names:
            expected = " ".join(map(teacher_flag, names))
            raise ValueError(f"--teacher-config {text} is for none of the recipe's teachers. Expected {expected}.")
        folders[name] = folder
    return folders


def read_teacher(training: OPDConfig, name: str, teacher: str, folder: str | None) -> Teacher:
    """Size one. The server of a served one is not asked: without a local copy or a folder nothing is known of it."""
    remote, served = training.trust_remote_code, is_url(teacher)
    local_copy = training.teacher_model_name_or_path if served else None
    path, flag = local_copy if served else teacher, f"--teacher-config {teacher_flag(name)}"
    if path is None and folder is None:
        return Teacher(name, None, served)
    config = read_config("teacher", path, folder, flag=flag, trust_remote_code=remote)
    kwargs = {} if served else training.teacher_model_init_kwargs or {}
    quantization = kwargs.get("quantization_config") or {}
    size = measure(
        build(config, trust_remote_code=remote), dtype=kwargs.get("dtype", "auto"), quantization=quantization
    )
    return Teacher(name, size, served, local_copy)


def teacher_flag(name: str) -> str:
    """What `--teacher-config` takes for a teacher.

    >>> teacher_flag("math"), teacher_flag("")
    ('math=DIR', 'DIR')
    """
    return f"{name}=DIR" if name else "DIR"
