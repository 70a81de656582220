"""What is said of one batch, without a history: a loss that leaks, a teacher that is broken."""

# Off the support the dropped-tail gradient is -p_j sum_S p r: it lifts the whole tail, whose share of the mass is what
# this threshold bounds to 2 % (docs/losses.md).
LOW_STUDENT_MASS = 0.98


def dropped_tail_advice(student_mass: float, *, threshold: float = LOW_STUDENT_MASS) -> str | None:
    """Advice where `loss_tail="drop"` meets a support with little of the student's mass, else None."""
    if student_mass >= threshold:
        return None
    return (
        f"loss_tail='drop' while only {student_mass:.3f} of the student's mass lies on the support (threshold "
        f"{threshold}): the uncentred gradient leaks mass into the tail. Use loss_tail='renormalize' or 'bucket', or "
        "a larger loss_top_k."
    )


def broken_teacher_message(step: int, rows: list[int], first_prompt: str) -> str:
    """What to say when the teacher's log-probabilities are NaN or infinite."""
    return (
        f"the teacher's log-probabilities are NaN or infinite at step {step}, rows {rows} of the micro-batch (first "
        f"prompt: {first_prompt[:120]!r}). Nothing was learned from it. Check the teacher's weights, and its dtype: "
        "float16 overflows where bfloat16 or float32 do not (teacher_model_init_kwargs)."
    )
