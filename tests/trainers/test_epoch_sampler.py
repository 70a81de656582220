"""The order of prompts: TRL's own in an unbroken run, and the same one wherever a run begins."""

from types import SimpleNamespace

import pytest
from trl.trainer.utils import RepeatSampler

from opd_trl.trainers.resume import EpochSampler


def trl_sampler(shuffle=True):
    return RepeatSampler(range(10), mini_repeat_count=2, batch_size=5, repeat_count=3, shuffle=shuffle, seed=7)


def at_epoch(epoch, **options):
    return EpochSampler(trl_sampler(**options), SimpleNamespace(state=SimpleNamespace(epoch=epoch)))


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_has_trls_order_also_where_a_run_begins_in_it(shuffle):
    unbroken = trl_sampler(shuffle)
    epochs = [list(unbroken) for _ in range(4)]
    assert (epochs[0] != epochs[1]) == shuffle
    for number, expected in enumerate(epochs):
        for progress in (0.0, 0.4, 0.999):
            assert list(at_epoch(number + progress, shuffle=shuffle)) == expected
    assert len(at_epoch(None)) == len(unbroken)


def test_an_epoch_that_ended_a_rounding_error_early_has_ended():
    assert list(at_epoch(1 - 1e-9)) == list(at_epoch(1.0)) != list(at_epoch(None))
