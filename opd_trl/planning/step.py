"""What a step of the student takes, moment by moment: generation, its forward, the loss, backward."""

import torch

from ..losses.head import block_size_for, chunk_size_for
from .component import BACKWARD, GENERATION, LOSS, MAX_LIVE_PARAMETERS, MOMENTS, STUDENT, TEACHER, Component, product
from .workload import (
    Engine,
    ModelSize,
    Teacher,
    Workload,
    casts_weights,
    stored_bytes,
    stored_in_words,
    stream_width,
    trained_width,
    weight_width,
)


# `(block, V)` float32 tensors of an elementwise loss, as torch allocates them (tests/planning/test_peak.py): of
# supports that gather, and at most, which is for jsd, where all ids are compared.
TEMPORARIES, FULL_TEMPORARIES = 2, 15


def generation(work: Workload, engine: Engine) -> list[Component]:
    """vLLM's share of the GPU, or the KV cache of transformers: 2 x layers x kv size x tokens x batch x width.

    ZeRO-3 gathers all weights to generate with transformers; elsewhere an adapter is added to a copy of float32 ones.
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
    if work.use_peft and engine.stage < 3 and model.linear_bits is None and weight_width(work, engine, model) == 4:
        how = f"with the adapter, {product(model.linear_parameters, 4)}"
        parts.append(Component("weights to generate", 4 * model.linear_parameters, how, (GENERATION,)))
    return parts


def layer_bytes_per_token(
    model: ModelSize, sequence_length: int, *, width: int, stream: int, attention: str, adapters: int | None
) -> int:
    """Bytes that one decoder layer saves for backward, per token.

        norms 2 (4 + stream) h  +  inputs of the linear layers 2 width h (5 width h where each casts its own)
        + query, key and value of all heads, output 4 width q  [+ their norms (4 + width) (q + kv)]
        + gated MLP 4 width I  +  sdpa: its mask, width s;  eager: the scores, heads s (4 + width)

    and with LoRA, whose frozen layers keep no inputs,

        norms 8 h  +  2 width (q + kv)  [+ norms 4 (q + kv)]  +  3 width I  +  adapters (5 h + q + I)  +  attention

    with h the hidden size, q and kv the widths of queries and keys, I that of the MLP, s the sequence length, `stream`
    the bytes of the residual stream and `adapters` those that an adapter keeps of each number of its input: what
    dropout leaves of it, and the mask. None: no LoRA. Source: counted as in arXiv 2205.05198, section 4.1, for RMSNorm
    in float32, rotary embeddings, grouped queries and a gated MLP without dropout, as transformers computes them.
    """
    hidden, queries, keys, inner = model.hidden_size, model.query_size, model.kv_size, model.intermediate_size
    if adapters is None:
        needed = 2 * (4 + stream) * hidden + (2 if stream == width else 5) * width * hidden
        needed += 4 * width * (queries + inner) + (4 + width) * (queries + keys) * model.has_qk_norm
    else:
        needed = 8 * hidden + (2 * width + 4 * model.has_qk_norm) * (queries + keys) + 3 * width * inner
        needed += adapters * (5 * hidden + queries + inner)
    if attention == "eager":
        return needed + model.num_heads * sequence_length * (4 + (width if width < 4 else 0))
    return needed + (width * sequence_length if attention == "sdpa" else 0)


def kept_by_adapters(work: Workload, engine: Engine) -> int | None:
    """Bytes of each number of an adapter's input; a mask of dropout has one on a GPU and float32's four on a CPU.

    Autocast casts the input; without it, it has the dtype of the adapter.
    """
    if not work.use_peft:
        return None
    width = work.compute_width if work.mixed_precision else trained_width(work, engine)
    return width + (1 if work.device == "cuda" else 4)


def activations(work: Workload, engine: Engine) -> list[Component]:
    """What all layers save for backward.

    With gradient checkpointing only their inputs, tokens x hidden x width; in backward one layer at a time: what it
    saves, and the gradients of three tensors of its MLP.
    """
    model, width, stream = work.student, work.compute_width, stream_width(work, engine)
    length = work.prompt_length + work.completion_length
    tokens = work.micro_batch
    adapters = kept_by_adapters(work, engine)
    per_token = layer_bytes_per_token(
        model, length, width=width, stream=stream, attention=work.attention, adapters=adapters
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


def hidden_states(work: Workload, engine: Engine) -> Component:
    """Of the completion: all and kept rows of student and teachers, and the student's gradient."""
    tokens, width = work.completion_tokens, work.compute_width
    teacher = work.together(model.hidden_size for model in work.scorers)
    per_token = 3 * stream_width(work, engine) * work.student.hidden_size + 2 * width * teacher
    return Component("hidden states", tokens * per_token, f"{tokens:,} tokens x {per_token:,} B", STUDENT)


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
    """The loss's float32 chunks of logits, one more in 16 bits for the products, and temporaries of a block.

    There are two chunks, and three where the target is a mean of teachers. Then the head's gradient, summed over the
    chunks in float32, and the heads that are cast or gathered whole. The loss against each teacher has a gradient of
    its own until backward: as many as a micro-batch has rows, or of every teacher where weights are sharded, since
    each rank then runs all of them.
    """
    student, width = work.student, work.compute_width
    vocab_size, device = student.vocab_size, torch.device(work.device)
    budget = None if work.loss_memory_mib is None else work.loss_memory_mib * 2**20
    live = work.live_logits
    rows = min(work.completion_tokens, chunk_size_for(vocab_size, device, budget=budget, tensors=live))
    block = min(rows, block_size_for(vocab_size, device))
    temporaries = FULL_TEMPORARIES if work.loss_support == "full" else TEMPORARIES
    chunks = vocab_size * (rows * (live * 4 + (2 if width == 2 else 0)) + block * temporaries * 4)
    parts = [Component("loss chunk", chunks, f"{live} x {rows:,} tokens x {vocab_size:,} x 4 B, and blocks", (LOSS,))]
    if not work.use_peft:
        teachers = 1 if work.mixes else max(1, len(work.teachers))
        held = (teachers if engine.stage == 3 or work.micro_batch_tokens else min(teachers, work.batch_size)) - 1
        shape, stored = student.head_parameters, 4 + held * trained_width(work, engine)
        how = product(shape, stored) + (f", of {held + 1} teachers" if held else "")
        parts.append(Component("LM head gradient", shape * stored, how, STUDENT))
    shape, how = head_copies(work, engine)
    return [*parts, Component("LM heads", shape * width, f"{how}, {product(shape, width)}", (LOSS,))]


def head_copies(work: Workload, engine: Engine) -> tuple[int, str]:
    """Weights of heads that are cast or gathered whole for the loss, and why.

    Casts and FSDP2's gathered heads of several teachers come one after the other, unless the target is their mean;
    ZeRO-3 gathers all at once.
    """
    own = work.student.head_parameters
    if casts_weights(work, engine):
        return own + work.together(x.head_parameters for x in work.scorers if x.width == 4), "cast to 16 bits"
    if engine.stage < 3:
        return 0, ""
    sharded = [teacher.size.head_parameters for teacher in work.teachers_here]
    return own + (sum(sharded) if engine.deepspeed else work.together(sharded)), "gathered whole"


TOP_K_ENTRY = 8 + 4  # an int64 id and a float32 log-probability


def teacher_weights(work: Workload, engine: Engine) -> list[Component]:
    """Teachers that are models of their own, the heads of those that send hidden states.

    An offloaded teacher, which no engine wraps, leaves its head on the GPU; its other weights come for its forward,
    one teacher after the other.
    """
    parts, bodies, shards = [], [], engine.shards(3)
    for teacher in work.teachers_here:
        width = weight_width(work, engine, teacher.size)
        if work.teacher_offload and engine.stage < 3:
            head = teacher.size.head_parameters
            parts.append(Component(label("teacher's head", teacher), head * width, product(head, width)))
            how = f"{stored_in_words(teacher.size, width, without=head)}, from the CPU"
            needed = stored_bytes(teacher.size, width) - head * width
            bodies.append(Component(label("teacher's body", teacher), needed, how, (TEACHER,)))
        else:
            needed = 0 if engine.offload_weights else stored_bytes(teacher.size, width) / shards
            how = stored_in_words(teacher.size, width, shards)
            parts.append(Component(label("teacher weights", teacher), needed, how))
    for teacher in work.teachers_served:
        if teacher.size is not None:
            head, width = teacher.size.head_parameters, teacher.size.width
            how = f"{product(head, width)}, from its server"
            parts.append(Component(label("teacher's head", teacher), head * width, how))
    for teacher in work.teachers:
        if teacher.reads_text and teacher.size is not None:
            copied, width = work.student.vocab_size * teacher.size.hidden_size, teacher.size.width
            how = f"{product(copied, width)}, by the student's ids"
            parts.append(Component(label("copy of the teacher's head", teacher), copied * width, how))
    return [*parts, *sorted(bodies, key=lambda body: body.bytes)[-1:]]


def label(component: str, teacher: Teacher) -> str:
    """The name of a row; of several teachers each has its own."""
    return f"{component}, {teacher.name}" if teacher.name else component


def teacher_forward(work: Workload, engine: Engine) -> Component:
    """The largest forward of those that run here, one after the other."""
    runs = [forward(work, engine, model) for model in work.models_scoring_here]
    return max(runs, key=lambda run: run.bytes, default=Component("teacher's forward", 0, "", (TEACHER,)))


def shared_context(work: Workload, engine: Engine) -> list[Component]:
    """Keys and values of a text that all prompts of a teacher begin with, at most the whole prompt.

    They are kept between the forwards of a step, once; in a forward there is a copy for each row, with those of its
    own tokens. Engines that shard weights read the text with each row.
    """
    if engine.stage == 3 or not work.models_scoring_here:
        return []
    sizes = [2 * x.num_layers * x.num_kv_heads * x.head_dim * work.compute_width for x in work.models_scoring_here]
    kept, largest = work.together(sizes), max(sizes)
    tokens, name, once = work.scored_tokens, "shared context", work.teacher_prompt_length
    return [
        Component(name, once * kept, f"its keys and values, {once:,} tokens x {kept:,} B"),
        Component(f"{name}, rows", tokens * largest, f"with each row, {tokens:,} tokens x {largest:,} B", (TEACHER,)),
    ]


def forward(work: Workload, engine: Engine, model: ModelSize) -> Component:
    """One layer at work, without a graph: per token the residual stream and four tensors of the MLP's width.

    Sharded weights are gathered for it: by ZeRO-3 up to `stage3_max_live_parameters`, by FSDP2 a layer together with
    the next one, or with the head, which accelerate puts into one unit with the last norm.
    """
    width = work.compute_width
    tokens = work.scored_tokens
    needed = tokens * ((4 + width) * model.hidden_size + 4 * width * model.intermediate_size)
    how, gathered = f"one layer at {tokens:,} tokens", 0
    if engine.stage == 3:
        layer = model.layer_parameters
        gathered = layer + max(layer, model.head_parameters)
        if engine.deepspeed:
            gathered = min(model.parameters, MAX_LIVE_PARAMETERS)
        how += f", {gathered:,} weights gathered"
    return Component("teacher's forward", needed + gathered * width, how, (TEACHER,))


def scored_ahead(work: Workload) -> list[Component]:
    """Scores of the whole generation batch: as wide as the widest teacher's, or those of each in a mean.

    They stay until the next generation batch has its own, so both are there while it is scored.
    """
    tokens, parts = work.generation_batch_size * work.completion_length, []
    sizes = [teacher.size for teacher in work.teachers_ahead if teacher.size is not None]
    if sizes:
        # A server sends its model's dtype; here the products have that of the run.
        widths = [teacher.size.width for teacher in work.teachers_served if teacher.size is not None]
        if len(widths) < len(sizes):
            widths.append(work.compute_width)
        parts.append(("scored ahead", work.together(size.hidden_size for size in sizes) * max(widths)))
    if work.served_top_k is not None and any(teacher.size is None for teacher in work.teachers_served):
        parts.append(("TopK scored ahead", work.served_top_k * TOP_K_ENTRY))
    kept = [Component(name, tokens * stored, f"{tokens:,} tokens x {stored:,} B") for name, stored in parts]
    following = [
        Component(f"{part.name}, next", part.bytes, "before those of the last batch go", (TEACHER,)) for part in kept
    ]
    return [*kept, *following]
