import os
import signal
import threading
import time

import pytest

from opd_trl.evaluation.math import Judge, as_solution, from_last_box, math_accuracy


@pytest.fixture(scope="module")
def judge():
    with Judge(workers=2, time_limit=1.0) as judge:
        yield judge


def judged(judge, answer, gold="7"):
    return judge([answer], [as_solution(gold)])[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (r"\boxed{9^{9^{9^{9}}}}", "timeout"),
        (r"\boxed{(10^9)!}", "timeout"),
        ("I do not know.", "no box"),
        (r"\boxed{7} or \boxed{8", "unclosed box"),
        (r"\boxed{}", "empty box"),
        (r"\boxed{" + "1" * 10_000_000 + "}", "too long"),
        ("x" * 10_000_000, "no box"),
        (r"\boxed{8}", "different"),
        ("\\boxed{\ud800}", "different"),
    ],
)
def test_a_wrong_or_hostile_answer_is_wrong_for_a_named_reason(judge, answer, reason):
    start = time.monotonic()
    verdict = judged(judge, answer)
    assert (verdict.correct, verdict.reason) == (False, reason)
    # Far below the clock on the wall, which is the second line of defence: 80 seconds here.
    assert time.monotonic() - start < 40


def test_the_answer_after_a_hostile_one_is_judged_as_ever(judge):
    verdicts = judge([r"\boxed{9^{9^{9^{9}}}}", r"\boxed{7}", r"\boxed{8}"], [r"\boxed{7}"] * 3)
    assert [verdict.correct for verdict in verdicts] == [False, True, False]


def test_a_worker_that_is_killed_is_replaced_and_its_answer_counts_as_a_crash():
    with Judge(workers=1, time_limit=30.0) as judge:
        assert judged(judge, r"\boxed{7}").correct
        worker = judge._calls._workers.queue[0]
        killer = threading.Timer(0.5, lambda: os.kill(worker.process.pid, signal.SIGKILL))
        killer.start()
        assert judged(judge, r"\boxed{9^{9^{9^{9}}}}").reason == "crash"
        assert judged(judge, r"\boxed{7}").correct


def test_closing_ends_every_process():
    judge = Judge(workers=1)
    judged(judge, r"\boxed{7}")
    process = judge._calls._workers.queue[0].process
    judge.close()
    assert process.poll() is not None


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\$36", "36"),
        (r"\frac43", r"\frac{4}{3}"),
        (r"\frac{4}{3}", r"\frac43"),
        (r"\text{Evelyn}", r"\text{Evelyn}"),
    ],
)
def test_spelling_alone_makes_no_answer_wrong(judge, gold, answer):
    assert judged(judge, rf"\boxed{{{answer}}}", gold).correct


def test_equal_answers_have_one_spelling_for_votes(judge):
    values = {judged(judge, rf"\boxed{{{text}}}").value for text in ("7", "7.0", r"\frac{14}{2}", " 7 ")}
    assert judged(judge, r"\boxed{7}").value in values
    assert judged(judge, r"\boxed{07}").value == judged(judge, r"\boxed{7}").value


def test_an_answer_that_cannot_be_compared_with_has_no_verdict(judge):
    assert judged(judge, r"\boxed{7}", "$$").reason == "unparsable gold"
    assert math_accuracy([r"\boxed{7}"], ["$$"]) == [None]


def test_the_reward_survives_what_a_student_may_write():
    start = time.monotonic()
    rewards = math_accuracy([r"\boxed{9^{9^{9^{9}}}}", "{" * 1_000_000, r"\boxed{7}" + "." * 50_000], ["7"] * 3)
    assert rewards == [0.0, 0.0, 1.0]
    assert time.monotonic() - start < 120


def test_a_long_text_is_cut_around_its_answer():
    assert from_last_box(r"\boxed{7}" + "x" * 50_000).startswith(r"\boxed{7}")
    assert from_last_box("x" * 50_000 + "$7$").endswith("$7$")
