"""Fields of OPDConfig that say who teaches, and what only the teacher sees."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TeacherFields:
    """Separate teachers, how they are loaded or reached, and the privileged context."""

    # Teacher
    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Separate teacher: hub id or path. See teacher_vocabulary for its tokenizer."},
    )
    teacher_vocabulary: str = field(
        default="auto",
        metadata={
            "help": "same: the teacher's tokens are the student's, id by id; shared: compare those that are; auto: "
            "same, or shared where 99 in 100 of the student's are the teacher's too; text: another tokenizer."
        },
    )
    teacher_model_revision: str | None = field(
        default=None, metadata={"help": "Revision of the teacher: branch, tag or commit."}
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments (JSON) of the teacher's from_pretrained, e.g. dtype, device_map."},
    )
    teacher_server_url: str | None = field(
        default=None,
        metadata={
            "help": "Separate teacher behind HTTP: `opd-trl serve-teacher` or vLLM's pooling runner (every "
            "loss_support), or vLLM's completions (teacher, intersection, sampled). Key in OPD_TRL_API_KEY. "
            "teacher_model_name_or_path beside it: the LM head of a pooling runner; else both are compared."
        },
    )
    teacher_server_timeout: float = field(
        default=300.0, metadata={"help": "Seconds until the answer of a teacher server must be whole."}
    )
    teacher_server_retries: int = field(
        default=8, metadata={"help": "Further attempts of a failed request, after 1, 2, 4, ... at most 30 seconds."}
    )
    teacher_server_concurrency: int = field(
        default=8, metadata={"help": "Requests of one process to a teacher server at a time."}
    )
    teachers: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "Several teachers: a mapping (JSON) from a name to a model or a server's URL. The data set's "
            "column `teacher` names each row's."
        },
    )
    teacher_server_models: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "For servers among `teachers`: a mapping (JSON) from a name there to what "
            "teacher_model_name_or_path is for a single server."
        },
    )
    teacher_mix: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "One target of all teachers: a mapping (JSON) from each one's name to its weight, or a column of "
            "such mappings. Weights sum to 1."
        },
    )
    teacher_mean: str = field(
        default="arithmetic",
        metadata={"help": "Mean of their distributions: arithmetic, what any of them does; geometric, what all do."},
    )
    teacher_chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Chat-template arguments (JSON) of the teacher's prompt. Default: chat_template_kwargs."},
    )
    teacher_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Completions that a teacher with its own frozen weights scores at once (a server: per request), "
            "ahead of the student's micro-batches. Default: with each of them."
        },
    )
    teacher_offload: str | None = field(
        default=None,
        metadata={"help": "cpu: a teacher with frozen weights lies in CPU memory except while it scores."},
    )
    max_teacher_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Longest teacher prompt in tokens. A longer one is an error that names its row, never cut."},
    )

    # Privileged context: what only the teacher sees
    privileged_context_column: str = field(
        default="privileged_context",
        metadata={"help": "Data set column with the text (or messages) that only the teacher sees."},
    )
    privileged_context: str | None = field(
        default=None, metadata={"help": "One text for all rows in place of a column: a system prompt, a constitution."}
    )
    privileged_context_file: str | None = field(
        default=None, metadata={"help": "The same from a file: text, or a .json list of chat messages for few_shot."}
    )
    sibling_context: bool = field(
        default=False,
        metadata={
            "help": "The context of a completion is the first other one of its prompt that the rewards call correct "
            "(SDPO); without one, the row's own column; without that, no loss."
        },
    )
    shuffle_privileged_context: bool = field(
        default=False,
        metadata={
            "help": "Each row gets the context of another one with another prompt, the same one in every epoch: what "
            "the teacher reads is worded like the row's own, and does not answer it (op2sd)."
        },
    )
    privileged_builder: str = field(
        default="system_prompt",
        metadata={
            "help": "How prompt and privileged context make the teacher's prompt: system_prompt, answer, solution, "
            "hint, feedback, few_shot, document, or an import path 'package.module:function'."
        },
    )
    privileged_template: str | None = field(
        default=None,
        metadata={"help": "Jinja template in place of the builder's own wording; variables: prompt, context."},
    )
