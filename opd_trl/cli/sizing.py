"""The memory of a training run on each GPU as arithmetic: a workload and an engine in, a list of components out.

The total is that of the largest moment of a step. Moments do not coincide; what is always there belongs to all.
"""

from dataclasses import dataclass

import torch

from ..losses.chunking import block_size_for, chunk_size_for
from .workload import Engine, ModelSize, Workload, casts_weights, stream_width, trained_width, weight_width


GIB = 2**30
RESERVE = 0.1  # share of the memory to keep free for what is not counted
CUDA_CONTEXT = GIB
MOMENTS = GENERATION, TEACHER, LOSS, BACKWARD = "generation", "teacher's forward", "loss", "backward"
STUDENT = (LOSS, BACKWARD)

# DeepSpeed's defaults, in elements: reduce_bucket_size, stage3_max_live_parameters.
REDUCE_BUCKET = 500_000_000
MAX_LIVE_PARAMETERS = 1_000_000_000


@dataclass(frozen=True)
class Component:
    """One row of the table: bytes on one GPU, how they come about, and the moments of a step that see them."""

    name: str
    bytes: float
    how: str
    moments: tuple[str, ...] = MOMENTS


def estimate(work: Workload, engine: Engine) -> list[Component]:
    """Everything counted that takes memory on one GPU."""
    parts = [
        student_weights(work, engine),
        gradients(work, engine),
        optimizer_state(work, engine),
        communication(work, engine),
        *frozen_copies(work, engine),
        *generation(work, engine),
        teacher_forward(work, engine),
        *activations(work, engine),
        *hidden_states(work, engine),
        working_weights(work, engine),
        *head(work, engine),
        Component("CUDA context", CUDA_CONTEXT if work.device == "cuda" else 0, "flat"),
    ]
    return [part for part in parts if part.bytes]


def at(components: list[Component], moment: str) -> float:
    """Bytes at one moment."""
    return sum(part.bytes for part in components if moment in part.moments)


def peak_moment(components: list[Component]) -> str:
    """The moment that takes most."""
    return max(MOMENTS, key=lambda moment: at(components, moment))


def total(components: list[Component]) -> float:
    """Bytes at the peak of a step."""
    return at(components, peak_moment(components))


def verdict(needed: float, memory: float) -> str:
    """`fits` with the reserve kept free, `tight` without it, or `does not fit`."""
    if needed <= (1 - RESERVE) * memory:
        return "fits"
    return "tight" if needed <= memory else "does not fit"


def product(count: int, width: float, shards: int = 1) -> str:
    """A product in words.

    >>> product(1000, 4, 8)
    '1,000 x 4 B / 8 GPUs'
    """
    return f"{count:,} x {width:g} B" + (f" / {shards} GPUs" if shards > 1 else "")


# Always there


def student_weights(work: Workload, engine: Engine) -> Component:
    """Weights and adapters; a 4-bit weight takes 4.5, with a float32 scale per 64 (arXiv 2305.14314, section 2)."""
    model, shards = work.student, engine.shards(3)
    width = weight_width(work, engine, model, trained=not work.use_peft)
    needed, how = model.parameters * width, product(model.parameters, width, shards)
    if work.linear_bits:
        needed -= model.linear_parameters * (width - work.linear_bits / 8)
        how += f", linear layers at {work.linear_bits:g} bits"
    if work.use_peft:
        adapters = 2 if work.teacher_kind == "ema" else 1
        needed += adapters * work.adapter_parameters * trained_width(work, engine)
        how += f", {adapters} adapter{'s' * (adapters > 1)} of {work.adapter_parameters:,}"
    return Component("student weights", 0 if engine.offload_weights else needed / shards, how)


def gradients(work: Workload, engine: Engine) -> Component:
    """One number for each trained weight, in its dtype."""
    count, width, shards = work.trained_parameters, trained_width(work, engine), engine.shards(2)
    return Component("gradients", count * width / shards, product(count, width, shards))


def optimizer_state(work: Workload, engine: Engine) -> Component:
    """AdamW's two moments in the dtype of the weights; under DeepSpeed in float32, with a float32 copy of the weights.

    Source: ZeRO, arXiv 1910.02054, section 3.1: 12 bytes a weight in mixed precision.
    """
    count, shards = work.trained_parameters, engine.shards(1)
    moments = 2 if work.eight_bit_optimizer else 8 if engine.deepspeed else 2 * trained_width(work, engine)
    width = moments + (4 if engine.deepspeed else 0)
    how = product(count, width, shards) + (", float32 weights among them" if engine.deepspeed else "")
    return Component("optimizer state", 0 if engine.offload_optimizer else count * width / shards, how)


def communication(work: Workload, engine: Engine) -> Component:
    """DDP's buckets hold the gradients a second time; DeepSpeed reduces through one bucket of a fixed size."""
    width = trained_width(work, engine)
    if engine.deepspeed:
        return Component("communication", REDUCE_BUCKET * width, f"one bucket, {product(REDUCE_BUCKET, width)}")
    count = work.trained_parameters if engine.stage == 0 and engine.gpus > 1 else 0
    return Component("communication", count * width, f"DDP's buckets, {product(count, width)}")


def frozen_copies(work: Workload, engine: Engine) -> list[Component]:
    """Teacher and reference model that are models of their own; a LoRA student switches its adapter instead.

    An offloaded teacher, which no engine wraps, leaves its head on the GPU; its other weights come for its forward.
    """
    models, parts, shards = {}, [], engine.shards(3)
    if work.has_own_teacher and work.teacher_offload and engine.stage < 3:
        width, head = work.scorer.width, work.scorer.vocab_size * work.scorer.hidden_size
        body = work.scorer.parameters - head
        parts += [
            Component("teacher's head", head * width, product(head, width)),
            Component("teacher's body", body * width, f"{product(body, width)}, from the CPU", (TEACHER,)),
        ]
    elif work.has_own_teacher:
        models["teacher weights"] = work.scorer
    if work.reference_model and not work.use_peft:
        models["reference model"] = work.student
    for name, model in models.items():
        width = weight_width(work, engine, model)
        needed = 0 if engine.offload_weights else model.parameters * width / shards
        parts.append(Component(name, needed, product(model.parameters, width, shards)))
    return parts


# The moments of a step


def generation(work: Workload, engine: Engine) -> list[Component]:
    """vLLM's share of the GPU, or the KV cache of transformers: 2 x layers x kv size x tokens x batch x width.

    ZeRO-3 gathers all weights to generate with transformers.
    """
    if work.generation == "server":
        return []
    if work.generation == "colocate":
        how, moments = f"{work.vllm_share:g} of the GPU", (GENERATION,) if work.vllm_sleeps else MOMENTS
        return [Component("vLLM, weights and cache", work.vllm_share * work.gpu_memory, how, moments)]
    model, tokens = work.student, work.generation_batch_size * (work.prompt_length + work.completion_length)
    per_token = 2 * model.num_layers * model.kv_size * work.compute_width
    parts = [Component("KV cache", tokens * per_token, f"{tokens:,} tokens x {per_token:,} B", (GENERATION,))]
    if engine.stage == 3 and engine.deepspeed and work.gather_for_generation:
        how = f"gathered whole, {product(model.parameters, work.compute_width)}"
        parts.append(Component("weights to generate", model.parameters * work.compute_width, how, (GENERATION,)))
    return parts


def teacher_forward(work: Workload, engine: Engine) -> Component:
    """One layer at work, without a graph: per token the residual stream and four tensors of the MLP's width.

    Sharded weights are gathered for it: by ZeRO-3 up to `stage3_max_live_parameters`, by FSDP2 two layers where the
    student scores, and a teacher of its own whole, which TRL's `prepare_fsdp` makes one unit.
    """
    model, width = work.scorer, work.compute_width
    tokens = (work.teacher_batch_size or work.batch_size) * (work.teacher_prompt_length + work.completion_length)
    needed = tokens * ((4 + width) * model.hidden_size + 4 * width * model.intermediate_size)
    how, gathered = f"one layer at {tokens:,} tokens", 0
    if engine.stage == 3:
        if engine.deepspeed:
            gathered = min(model.parameters, MAX_LIVE_PARAMETERS)
        else:
            gathered = model.parameters if work.has_own_teacher else 2 * model.layer_parameters
        how += f", {gathered:,} weights gathered"
    return Component("teacher's forward", needed + gathered * width, how, (TEACHER,))


def layer_bytes_per_token(
    model: ModelSize, sequence_length: int, *, width: int, stream: int, attention: str, adapters: bool
) -> int:
    """Bytes that one decoder layer saves for backward, per token.

        norms 2 (4 + stream) h  +  inputs of the linear layers 2 width h (5 width h where each casts its own)
        + query, key and value of all heads, output 4 width q  [+ their norms (4 + width) (q + kv)]
        + gated MLP 4 width I  +  sdpa: its mask, width s;  eager: the scores, heads s (4 + width)
        [+ LoRA: the dropout mask of each linear layer's input, 5 h + q + I]

    with h the hidden size, q and kv the widths of queries and keys, I that of the MLP, s the sequence length, `stream`
    the bytes of the residual stream. Source: counted as in arXiv 2205.05198, section 4.1, for RMSNorm in float32,
    rotary embeddings, grouped queries and a gated MLP without dropout, as transformers computes them.
    """
    hidden, queries = model.hidden_size, model.query_size
    needed = 2 * (4 + stream) * hidden + (2 if stream == width else 5) * width * hidden
    needed += 4 * width * (queries + model.intermediate_size)
    if model.has_qk_norm:
        needed += (4 + width) * (queries + model.kv_size)
    if adapters:
        needed += 5 * hidden + queries + model.intermediate_size
    if attention == "eager":
        return needed + model.num_heads * sequence_length * (4 + (width if width < 4 else 0))
    return needed + (width * sequence_length if attention == "sdpa" else 0)


def activations(work: Workload, engine: Engine) -> list[Component]:
    """What all layers save for backward.

    With gradient checkpointing only their inputs, tokens x hidden x width; in backward one layer at a time: what it
    saves, and the gradients of three tensors of its MLP.
    """
    model, width, stream = work.student, work.compute_width, stream_width(work, engine)
    length = work.prompt_length + work.completion_length
    tokens = work.batch_size * length
    per_token = layer_bytes_per_token(
        model, length, width=width, stream=stream, attention=work.attention, adapters=work.use_peft
    )
    if not work.gradient_checkpointing:
        how = f"{model.num_layers} layers x {tokens:,} tokens x {per_token:,} B"
        return [Component("activations", model.num_layers * tokens * per_token, how, STUDENT)]
    inputs = model.num_layers * tokens * model.hidden_size
    per_token += 3 * width * model.intermediate_size
    return [
        Component("checkpoints", inputs * stream, f"inputs of the layers, {product(inputs, stream)}", STUDENT),
        Component("recomputed layer", tokens * per_token, f"{tokens:,} tokens x {per_token:,} B", (BACKWARD,)),
    ]


def hidden_states(work: Workload, engine: Engine) -> list[Component]:
    """Of the completion: all and kept rows of both models, and the student's gradient.

    A teacher that scores ahead leaves those of the whole generation batch.
    """
    tokens, width = work.batch_size * work.completion_length, work.compute_width
    per_token = 3 * stream_width(work, engine) * work.student.hidden_size + 2 * width * work.scorer.hidden_size
    ahead = work.generation_batch_size * work.completion_length if work.teacher_scores_ahead else 0
    stored = work.scorer.hidden_size * width
    return [
        Component("hidden states", tokens * per_token, f"{tokens:,} tokens x {per_token:,} B", STUDENT),
        Component("scored ahead", ahead * stored, f"{ahead:,} tokens x {stored:,} B", (TEACHER, *STUDENT)),
    ]


def working_weights(work: Workload, engine: Engine) -> Component:
    """The student's weights as the products read them: cast by autocast, or gathered where they are sharded.

    Autocast keeps what it casts until the forward ends; a frozen or recomputed layer keeps its own alone. ZeRO-3
    gathers up to `stage3_max_live_parameters`, FSDP2 two layers, and it reduces the gradients of one.
    """
    model, width, moments = work.student, work.compute_width, STUDENT
    if casts_weights(work, engine):
        count, how = model.linear_parameters, "cast to 16 bits"
        if work.gradient_checkpointing:
            count, moments = (model.layer_parameters, STUDENT) if work.use_peft else (count, (LOSS,))
    elif engine.fsdp:
        count, how = 3 * model.layer_parameters, "two layers gathered, gradients of one"
    else:
        count, how = min(model.parameters, MAX_LIVE_PARAMETERS) if engine.stage == 3 else 0, "gathered"
    return Component("working weights", count * width, f"{how}, {product(count, width)}", moments)


def head(work: Workload, engine: Engine) -> list[Component]:
    """The loss's two float32 chunks of logits, one more in 16 bits for the products, and four tensors of a block.

    Then the head's gradient, summed over the chunks in float32, and the heads that are cast or gathered whole.
    """
    student, teacher, width = work.student, work.scorer, work.compute_width
    vocab_size, device = student.vocab_size, torch.device(work.device)
    budget = None if work.loss_memory_mib is None else work.loss_memory_mib * 2**20
    rows = min(work.batch_size * work.completion_length, chunk_size_for(vocab_size, device, budget=budget))
    block = min(rows, block_size_for(vocab_size, device))
    chunks = vocab_size * (rows * (2 * 4 + (2 if width == 2 else 0)) + block * 4 * 4)
    parts = [Component("loss chunk", chunks, f"2 x {rows:,} tokens x {vocab_size:,} x 4 B, and blocks", (LOSS,))]
    if not work.use_peft:
        shape = vocab_size * student.hidden_size
        parts.append(Component("LM head gradient", shape * 4, product(shape, 4), STUDENT))
    if casts_weights(work, engine):
        columns, how = student.hidden_size + (teacher.hidden_size if teacher.width == 4 else 0), "cast to 16 bits"
    else:
        columns = student.hidden_size + (teacher.hidden_size if work.has_own_teacher else 0)
        columns, how = columns if engine.stage == 3 else 0, "gathered whole"
    shape = vocab_size * columns
    return [*parts, Component("LM heads", shape * width, f"{how}, {product(shape, width)}", (LOSS,))]
