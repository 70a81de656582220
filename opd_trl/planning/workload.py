"""What the sizing of a run starts from: the models, what the recipe asks of one GPU, the engine."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from ..losses.chunked import KnownSupport
from ..losses.mixture import LIVE_LOGITS
from .component import product


FOUR_BITS = 4.5  # of a weight in blocks of 64 with a float32 scale each, arXiv 2305.14314


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a causal language model.

    Args:
        parameters: all of them, tied weights once.
        linear_parameters: weights of the linear layers without the head; what quantization and autocast touch.
        layer_parameters: one decoder layer.
        intermediate_size: width of the MLP that a token passes; all of its experts together.
        width: bytes of a weight as it is loaded.
        linear_bits: of a weight of a quantized linear layer; None: not quantized.
    """

    parameters: int
    linear_parameters: int
    layer_parameters: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    has_qk_norm: bool
    width: int
    linear_bits: float | None = None

    @property
    def head_parameters(self) -> int:
        """Weights of the LM head, `V x H`."""
        return self.vocab_size * self.hidden_size

    @property
    def query_size(self) -> int:
        """Width of the queries of a token, all heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the keys of a token; the values have the same."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class Teacher:
    """A separate teacher, or a self-teacher's copy of the student.

    Args:
        name: by which rows name it; empty for a single one.
        size: None for a served one of which nothing is known.
        served: does it lie behind HTTP? One of known size counts as `opd-trl serve-teacher`, which takes most here.
        local_copy: path or hub id of a served one that is loaded at start, to compare.
        reads_text: has it another tokenizer? Then a copy of its head has a row for each id of the student's.
    """

    name: str
    size: ModelSize | None
    served: bool = False
    local_copy: str | None = None
    reads_text: bool = False


@dataclass(frozen=True)
class Workload:
    """What a recipe asks of one GPU.

    Args:
        teachers: separate ones; empty where the student is its own teacher.
        teacher_kind: `model`, or that of OPSD: `base`, `live`, `ema`.
        loss_support, loss_top_k: as in OPDConfig.
        adapter_parameters: what LoRA trains, whether or not `use_peft` is on; None where it cannot be told.
        mixed_precision: bf16 or fp16.
        reference_model: GRPO's own, for `beta` above 0.
        teacher_offload: does a teacher with frozen weights of its own rest on the CPU?
        teacher_batch_size: completions that it scores at once, ahead of the micro-batches; None: those of one.
        batch_size: completions of one micro-batch.
        generation_batch_size: completions generated at a time.
        prompt_length, teacher_prompt_length, completion_length: tokens.
        attention: `sdpa`, `eager`, or a flash attention.
        loss_memory_mib: as in OPDConfig.
        generation: `transformers`, or vLLM's `colocate` or `server`.
        vllm_share: of the GPU's memory, in colocate mode.
        gather_for_generation: does ZeRO-3 gather all weights to generate with transformers?
        gpu_memory: bytes.
        device: `cuda` or `cpu`.
        extrapolates: is there a reference model of `loss_extrapolation`? It is counted as large as the student.
        micro_batch_tokens: as in OPDConfig: what a micro-batch computes in place of `batch_size` rows.
        mixes: are the teachers one target, so that each of them scores every row?
    """

    student: ModelSize
    teachers: tuple[Teacher, ...]
    teacher_kind: str
    loss_support: str
    loss_top_k: int
    use_peft: bool
    adapter_parameters: int | None
    mixed_precision: bool
    eight_bit_optimizer: bool
    reference_model: bool
    teacher_offload: bool
    teacher_batch_size: int | None
    batch_size: int
    generation_batch_size: int
    prompt_length: int
    teacher_prompt_length: int
    completion_length: int
    gradient_checkpointing: bool
    attention: str
    loss_memory_mib: int | None
    generation: str
    vllm_share: float
    vllm_sleeps: bool
    gather_for_generation: bool
    gpu_memory: float
    device: str
    extrapolates: bool = False
    micro_batch_tokens: int | None = None
    mixes: bool = False

    @property
    def micro_batch(self) -> int:
        """Tokens that the student computes of one micro-batch."""
        return self.micro_batch_tokens or self.batch_size * (self.prompt_length + self.completion_length)

    @property
    def completion_tokens(self) -> int:
        """Those of them that are completions: their share of a row of full length."""
        return self.micro_batch * self.completion_length // (self.prompt_length + self.completion_length)

    @property
    def scored_tokens(self) -> int:
        """Tokens that a teacher computes at once."""
        if self.teacher_batch_size is None and self.micro_batch_tokens is not None:
            return self.micro_batch_tokens
        return (self.teacher_batch_size or self.batch_size) * (self.teacher_prompt_length + self.completion_length)

    @property
    def teachers_here(self) -> tuple[Teacher, ...]:
        """Teachers with weights of their own in this job. A LoRA student is its own base with the adapter switched."""
        if not self.teachers and not self.use_peft and self.teacher_kind in ("base", "ema"):
            return (Teacher("", self.student),)
        return tuple(teacher for teacher in self.teachers if not teacher.served)

    @property
    def teachers_served(self) -> tuple[Teacher, ...]:
        """The teachers that run in a server of their own and answer over HTTP."""
        return tuple(teacher for teacher in self.teachers if teacher.served)

    @property
    def teachers_ahead(self) -> tuple[Teacher, ...]:
        """Those that score a whole generation batch before the micro-batches: served teachers always."""
        here = self.teacher_offload or self.teacher_batch_size is not None
        return self.teachers_served + (self.teachers_here if here else ())

    @property
    def models_scoring_here(self) -> tuple[ModelSize, ...]:
        """Models that run in this job to score: those of the teachers, or the student."""
        return tuple(teacher.size for teacher in self.teachers_here) if self.teachers else (self.student,)

    @property
    def scorers(self) -> tuple[ModelSize, ...]:
        """Models whose hidden states and heads the loss reads."""
        served = tuple(teacher.size for teacher in self.teachers_served if teacher.size is not None)
        return self.models_scoring_here + served

    @property
    def served_top_k(self) -> int | None:
        """K of a server that sends log-probabilities; None where the loss needs hidden states."""
        return self.loss_top_k if self.loss_support in get_args(KnownSupport) and not self.mixes else None

    @property
    def live_logits(self) -> int:
        """`(chunk, V)` tensors of the loss that live at a time."""
        return LIVE_LOGITS if self.mixes else 2

    def together(self, sizes: Iterable[int]) -> int:
        """What a micro-batch holds of sizes of its teachers: in a mean that of each, else the largest."""
        return sum(sizes) if self.mixes else max(sizes, default=0)

    @property
    def dense_log_probs(self) -> int:
        """Bytes of float32 log-probabilities `[tokens, vocabulary]` of both models, which our loss never builds."""
        return 2 * 4 * self.completion_tokens * self.student.vocab_size

    @property
    def trained_parameters(self) -> int:
        """How many weights are trained: those of the adapter, or all."""
        return self.adapter_parameters if self.use_peft else self.student.parameters

    @property
    def compute_width(self) -> int:
        """Bytes of a number in the matrix products."""
        return 2 if self.mixed_precision else self.student.width


@dataclass(frozen=True)
class Engine:
    """Who holds what: `stage` 1 shards the optimizer state over the GPUs, 2 the gradients too, 3 the weights too.

    Args:
        name: as `--accelerate_config` takes it.
        title: as people say it.
        offload_optimizer, offload_weights: kept in the memory of the host.
    """

    name: str
    title: str
    gpus: int
    stage: int = 0
    deepspeed: bool = False
    offload_optimizer: bool = False
    offload_weights: bool = False

    @property
    def fsdp(self) -> bool:
        """Does FSDP2 shard the weights? Of the others only DeepSpeed does."""
        return self.stage == 3 and not self.deepspeed

    def shards(self, stage: int) -> int:
        """Over how many GPUs is that spread which is sharded from `stage` on?"""
        return self.gpus if self.stage >= stage else 1


def engines(gpus: int) -> list[Engine]:
    """The engines of `recipes/accelerate_configs` on `gpus` GPUs."""
    return [
        Engine("single_gpu", "1 GPU", 1),
        Engine("multi_gpu", "DDP", gpus),
        Engine("zero1", "ZeRO-1", gpus, 1, deepspeed=True),
        Engine("zero2", "ZeRO-2", gpus, 2, deepspeed=True),
        Engine("zero3", "ZeRO-3", gpus, 3, deepspeed=True),
        Engine("fsdp2", "FSDP2", gpus, 3),
    ]


# Bytes of a stored number and of a model


def weight_width(work: Workload, engine: Engine, model: ModelSize, *, trained: bool = False) -> int:
    """Bytes of a weight: DeepSpeed casts models to 16 bits; accelerate's FSDP2 keeps what it trains in float32."""
    if work.mixed_precision and engine.deepspeed:
        return 2
    return 4 if work.mixed_precision and engine.fsdp and trained else model.width


def trained_width(work: Workload, engine: Engine) -> int:
    """Bytes of a trained weight and of its gradient.

    PEFT makes adapters float32, TRL those of a quantized model bfloat16.
    """
    if not work.use_peft:
        return weight_width(work, engine, work.student, trained=True)
    return 2 if work.student.linear_bits or (work.mixed_precision and engine.deepspeed) else 4


def casts_weights(work: Workload, engine: Engine) -> bool:
    """Does autocast cast float32 weights in every forward? DeepSpeed holds and FSDP2 gathers them in 16 bits."""
    return work.mixed_precision and work.student.width == 4 and not engine.deepspeed and not engine.fsdp


def stream_width(work: Workload, engine: Engine) -> int:
    """Bytes of the residual stream: float32 embeddings under autocast keep it in float32."""
    return 4 if casts_weights(work, engine) else work.compute_width


def stored_bytes(model: ModelSize, width: float) -> float:
    """Bytes of a model's weights; a 4-bit one takes 4.5, with a float32 scale per 64 (arXiv 2305.14314, section 2)."""
    saved = width - model.linear_bits / 8 if model.linear_bits else 0
    return model.parameters * width - model.linear_parameters * saved


def stored_in_words(model: ModelSize, width: float, shards: int = 1, *, without: int = 0) -> str:
    """How `stored_bytes` come about, as the table shows it; `without` some parameters."""
    bits = f", linear layers at {model.linear_bits:g} bits" if model.linear_bits else ""
    return product(model.parameters - without, width, shards) + bits


def teacher_flag(name: str) -> str:
    """What `--teacher-config` takes for a teacher.

    >>> teacher_flag("math"), teacher_flag("")
    ('math=DIR', 'DIR')
    """
    return f"{name}=DIR" if name else "DIR"
