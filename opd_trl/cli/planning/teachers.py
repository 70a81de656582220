"""What teachers take on each GPU: their weights, their forward, and the scores that they leave ahead of it."""

from ...planning.component import MAX_LIVE_PARAMETERS, TEACHER, Component, product
from ...planning.workload import Engine, ModelSize, Teacher, Workload, stored_bytes, stored_in_words, weight_width


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
    return [*parts, *sorted(bodies, key=lambda body: body.bytes)[-1:]]


def label(component: str, teacher: Teacher) -> str:
    """The name of a row; of several teachers each has its own."""
    return f"{component}, {teacher.name}" if teacher.name else component


def teacher_forward(work: Workload, engine: Engine) -> Component:
    """The largest forward of those that run here, one after the other."""
    runs = [forward(work, engine, model) for model in work.models_scoring_here]
    return max(runs, key=lambda run: run.bytes, default=Component("teacher's forward", 0, "", (TEACHER,)))


def forward(work: Workload, engine: Engine, model: ModelSize) -> Component:
    """One layer at work, without a graph: per token the residual stream and four tensors of the MLP's width.

    Sharded weights are gathered for it: by ZeRO-3 up to `stage3_max_live_parameters`, by FSDP2 a layer together with
    the next one, or with the head, which accelerate puts into one unit with the last norm.
    """
    width = work.compute_width
    tokens = (work.teacher_batch_size or work.batch_size) * (work.teacher_prompt_length + work.completion_length)
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
    """Scores of the whole generation batch, as wide as the widest teacher's.

    They stay until the next generation batch has its own, so both are there while it is scored.
    """
    tokens, parts = work.generation_batch_size * work.completion_length, []
    sizes = [teacher.size for teacher in work.teachers_ahead if teacher.size is not None]
    if sizes:
        # A server sends its model's dtype; here the products have that of the run.
        widths = [teacher.size.width for teacher in work.teachers_served if teacher.size is not None]
        if len(widths) < len(sizes):
            widths.append(work.compute_width)
        parts.append(("scored ahead", max(size.hidden_size for size in sizes) * max(widths)))
    if work.served_top_k is not None and any(teacher.size is None for teacher in work.teachers_served):
        parts.append(("TopK scored ahead", work.served_top_k * TOP_K_ENTRY))
    kept = [Component(name, tokens * stored, f"{tokens:,} tokens x {stored:,} B") for name, stored in parts]
    following = [
        Component(f"{part.name}, next", part.bytes, "before those of the last batch go", (TEACHER,)) for part in kept
    ]
    return [*kept, *following]
