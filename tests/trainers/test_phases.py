import time

import pytest
import torch

from opd_trl.trainers.phases import PhaseClock, timed


def nap(seconds=0.02):
    time.sleep(seconds)


@pytest.fixture
def clock():
    return PhaseClock(torch.device("cpu"))


def test_each_moment_belongs_to_the_innermost_phase(clock):
    with clock.within("student"):
        nap()
        with clock.within("generation"):
            nap(0.04)
            with clock.within("teacher"):
                nap(0.08)
        nap()
    seconds = clock.seconds()
    assert seconds["teacher"] == pytest.approx(0.08, abs=0.03)
    assert seconds["generation"] == pytest.approx(0.04, abs=0.03)
    assert seconds["student"] == pytest.approx(0.04, abs=0.03)


def test_what_lies_between_two_steps_counts_nowhere(clock):
    for _ in range(2):
        with clock.within("student"):
            pass
        nap()
    assert clock.seconds()["student"] < 0.01


def test_seconds_are_asked_for_once(clock):
    with clock.within("student"):
        nap()
    assert clock.seconds().keys() == {"student"}
    assert clock.seconds() == {}


def test_a_phase_outside_of_a_training_step_is_an_evaluation_and_not_counted(clock):
    with clock.within("generation"), clock.within("teacher"):
        nap()
    assert clock.seconds() == {}
    assert clock.phase is None


def test_an_error_leaves_the_phase(clock):
    with pytest.raises(RuntimeError), clock.within("student"), clock.within("teacher"):
        raise RuntimeError
    assert clock.phase is None


def test_a_trainer_without_a_monitor_is_not_timed(clock):
    class Trainer:
        monitor = None

    class Monitor:
        pass

    @timed("student")
    def work(trainer, value, *, other):
        return value + other

    assert work(Trainer, 1, other=2) == 3
    Trainer.monitor = Monitor
    Monitor.clock = clock
    assert work(Trainer, 1, other=2) == 3
    assert clock.seconds().keys() == {"student"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_work_in_the_stream_is_timed_without_waiting_for_it():
    clock, x = PhaseClock(torch.device("cuda")), torch.randn(4096, 4096, device="cuda")
    with clock.within("student"):
        x @ x
    torch.cuda.synchronize()
    clock.seconds()
    before = time.perf_counter()
    with clock.within("student"):
        with clock.within("teacher"):
            for _ in range(200):
                x @ x
        left_after = time.perf_counter() - before
    seconds = clock.seconds()
    assert left_after < seconds["teacher"] / 2
    assert seconds["teacher"] > 10 * seconds["student"]
