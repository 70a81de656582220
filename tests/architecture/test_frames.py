"""From a trainer's loss to its arithmetic: how many of our functions lie on the way, and in how many files."""

import traceback
from dataclasses import replace
from pathlib import Path

import pytest

import opd_trl
from opd_trl.losses import fused
from opd_trl.losses.divergences import DIVERGENCES
from tests.trainers.build import opd_trainer


PACKAGE = Path(opd_trl.__file__).parent
MOST_FRAMES, MOST_FILES = 9, 5


def watched(arithmetic, ways: list):
    """A function that first notes which of our functions have led to it, itself included."""

    def call(*args, **kwargs):
        stack = [x for x in traceback.extract_stack() if Path(x.filename).is_relative_to(PACKAGE)]
        start = next(i for i, frame in enumerate(stack) if frame.name.endswith("compute_loss"))
        ways.append([*((x.filename, x.name) for x in stack[start:]), (arithmetic.__code__.co_filename, "arithmetic")])
        return arithmetic(*args, **kwargs)

    return call


@pytest.mark.parametrize("support", ["student", "full", "sampled"])
def test_a_step_reaches_its_arithmetic_in_nine_frames_and_five_files(
    tmp_path, student_path, teacher_path, monkeypatch, support
):
    ways: list[list[tuple[str, str]]] = []
    if support == "sampled":
        monkeypatch.setattr(fused, "sampled_token_loss", watched(fused.sampled_token_loss, ways))
    else:
        entry = DIVERGENCES["reverse_kl"]
        monkeypatch.setitem(DIVERGENCES, "reverse_kl", replace(entry, terms=watched(entry.terms, ways)))
    opd_trainer(tmp_path, student_path, teacher_path, loss_support=support).train()
    assert ways
    for way in ways:
        assert len(way) <= MOST_FRAMES, way
        assert len({file for file, _ in way}) <= MOST_FILES, way
