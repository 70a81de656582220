"""The memory of a training run on each GPU: a workload and an engine in, a list of components out."""

from .component import GIB, REDUCE_BUCKET, Component, product
from .step import (
    activations,
    generation,
    head,
    hidden_states,
    scored_ahead,
    shared_context,
    teacher_forward,
    teacher_weights,
    working_weights,
)
from .workload import Engine, Workload, stored_bytes, stored_in_words, trained_width, weight_width


CUDA_CONTEXT = GIB


def estimate(work: Workload, engine: Engine) -> list[Component]:
    """Everything counted that takes memory on one GPU."""
    parts = [
        student_weights(work, engine),
        gradients(work, engine),
        optimizer_state(work, engine),
        communication(work, engine),
        *teacher_weights(work, engine),
        reference_model(work, engine),
        *generation(work, engine),
        teacher_forward(work, engine),
        *shared_context(work, engine),
        *activations(work, engine),
        hidden_states(work, engine),
        *scored_ahead(work),
        working_weights(work, engine),
        *head(work, engine),
        Component("CUDA context", CUDA_CONTEXT if work.device == "cuda" else 0, "flat"),
    ]
    return [part for part in parts if part.bytes]


def student_weights(work: Workload, engine: Engine) -> Component:
    """The student's weights and its adapters; an EMA teacher of LoRA is a second adapter."""
    model, shards = work.student, engine.shards(3)
    width = weight_width(work, engine, model, trained=not work.use_peft)
    needed, how = stored_bytes(model, width), stored_in_words(model, width, shards)
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


def reference_model(work: Workload, engine: Engine) -> Component:
    """GRPO's own and that of an extrapolated loss, models as the student is; LoRA switches its adapter instead."""
    model, shards = work.student, engine.shards(3)
    width = weight_width(work, engine, model)
    copies = 0 if work.use_peft or engine.offload_weights else work.reference_model + work.extrapolates
    needed = copies * stored_bytes(model, width) / shards
    return Component("reference model", needed, stored_in_words(model, width, shards))
