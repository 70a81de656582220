"""What the sizing of a run starts from: the models, what the recipe asks of one GPU, the engine."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """A causal language model.

    Args:
        parameters: all of them, tied weights once.
        linear_parameters: weights of the linear layers without the head; what quantization and autocast touch.
        layer_parameters: one decoder layer.
        intermediate_size: width of the MLP that a token passes; all of its experts together.
        width: bytes of a weight as it is loaded.
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

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the keys of a token; the values have the same."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class Workload:
    """What a recipe asks of one GPU.

    Args:
        teacher: a model of its own; None where the student is its own teacher.
        teacher_kind: `model`, or that of OPSD: `base`, `live`, `ema`.
        adapter_parameters: what LoRA trains, whether or not `use_peft` is on; None where it cannot be told.
        linear_bits: of a weight of a quantized linear layer; None: not quantized.
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
    """

    student: ModelSize
    teacher: ModelSize | None
    teacher_kind: str
    use_peft: bool
    adapter_parameters: int | None
    linear_bits: float | None
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

    @property
    def scorer(self) -> ModelSize:
        """The model that scores: the teacher's own, or the student."""
        return self.teacher or self.student

    @property
    def has_own_teacher(self) -> bool:
        """Has the teacher weights of its own? A LoRA student is its own base with the adapter switched."""
        return self.teacher is not None or (not self.use_peft and self.teacher_kind in ("base", "ema"))

    @property
    def teacher_scores_ahead(self) -> bool:
        """Does the teacher score a whole generation batch before the micro-batches?"""
        return self.teacher_offload or self.teacher_batch_size is not None

    @property
    def dense_log_probs(self) -> int:
        """Bytes of float32 log-probabilities `[tokens, vocabulary]` of both models, which our loss never builds."""
        return 2 * 4 * self.batch_size * self.completion_length * self.student.vocab_size

    @property
    def trained_parameters(self) -> int:
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


# Bytes of a stored number


def weight_width(work: Workload, engine: Engine, model: ModelSize, *, trained: bool = False) -> int:
    """Of a weight: DeepSpeed casts models to 16 bits; accelerate's FSDP2 keeps what it trains in float32."""
    if work.mixed_precision and engine.deepspeed:
        return 2
    return 4 if work.mixed_precision and engine.fsdp and trained else model.width


def trained_width(work: Workload, engine: Engine) -> int:
    """Of a trained weight and its gradient: PEFT makes adapters float32, TRL those of a quantized model bfloat16."""
    if not work.use_peft:
        return weight_width(work, engine, work.student, trained=True)
    return 2 if work.linear_bits or (work.mixed_precision and engine.deepspeed) else 4


def casts_weights(work: Workload, engine: Engine) -> bool:
    """Does autocast cast float32 weights in every forward? DeepSpeed holds and FSDP2 gathers them in 16 bits."""
    return work.mixed_precision and work.student.width == 4 and not engine.deepspeed and not engine.fsdp


def stream_width(work: Workload, engine: Engine) -> int:
    """Bytes of the residual stream: float32 embeddings under autocast keep it in float32."""
    return 4 if casts_weights(work, engine) else work.compute_width
