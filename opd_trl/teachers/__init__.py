"""Floor 3: who scores the completion, and whether its vocabulary is the student's."""

from ..models.sharding import whole_state_dict, write_whole
from .base import Host, Teacher, scoring_mode
from .model_teacher import ModelTeacher
from .own import AdaptersOffTeacher, AdapterTeacher, LiveTeacher, self_teacher
from .server import OURS, PROBE_TEXT, SAME_MODEL, TeacherServer
from .transport import TeacherServerError
from .vocabulary import check_same_vocabulary, shared_rows


__all__ = [
    "OURS",
    "PROBE_TEXT",
    "SAME_MODEL",
    "AdapterTeacher",
    "AdaptersOffTeacher",
    "Host",
    "LiveTeacher",
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
