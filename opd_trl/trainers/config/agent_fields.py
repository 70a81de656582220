"""Fields of OPDConfig for rollouts over several turns, with tools or an environment."""

from dataclasses import dataclass, field


@dataclass
class AgentFields:
    """How many turns a rollout may have, which can grow over the run."""

    # Agents
    tool_depth_start: int | None = field(
        default=None,
        metadata={
            "help": "Most turns of a rollout with tools at step 0; they grow to max_tool_calling_iterations + 1. "
            "Evaluation always has them all."
        },
    )
    tool_depth_steps: int | None = field(
        default=None, metadata={"help": "Optimizer steps after which a rollout may have one turn more."}
    )
