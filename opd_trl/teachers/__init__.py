"""Floor 1: who scores the completion, and whether its vocabulary is the student's."""

from ..models.sharding import whole_state_dict, write_whole
from .server import OURS, PROBE_TEXT, SAME_MODEL, TeacherServer
from .teachers import AdaptersOffTeacher, AdapterTeacher, ModelTeacher, Teacher, scoring_mode, self_teacher
from .transport import TeacherServerError
from .vocabulary import check_same_vocabulary, shared_rows


__all__ = [
    "OURS",
    "PROBE_TEXT",
    "SAME_MODEL",
    "AdapterTeacher",
    "AdaptersOffTeacher",
    "ModelTeacher",
    "Teacher",
    "TeacherServer",
    "TeacherServerError",
    "check_same_vocabulary",
    "scoring_mode",
    "self_teacher",
    "shared_rows",
    "whole_state_dict",
    "write_whole",
]
