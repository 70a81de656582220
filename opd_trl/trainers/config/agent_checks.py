"""What OPDConfig refuses of rollouts over several turns."""


def check_depth(config) -> None:
    """Raise ValueError where half of the curriculum of turns is missing, or it begins above its end."""
    start, steps, most = config.tool_depth_start, config.tool_depth_steps, config.max_tool_calling_iterations
    if (start is None) != (steps is None):
        raise ValueError(
            f"tool_depth_start={start} with tool_depth_steps={steps}: one says at how many turns rollouts begin, the "
            "other after how many steps they may have one more. Set both, e.g. 1 and 6, or none."
        )
    if start is not None and most is not None and start > most + 1:
        raise ValueError(
            f"tool_depth_start={start} is above the most turns, max_tool_calling_iterations={most} and one. Lower it."
        )
