"""Every form of the loss that is allowed and not the same as another."""

from typing import get_args

from opd_trl.losses.objective import LossSupport
from opd_trl.losses.support import Divergence, Tail


TOP_K_SUPPORTS = ("student", "teacher", "intersection", "union")
FORMS = [
    *[
        (support, divergence, tail)
        for support in TOP_K_SUPPORTS
        for divergence in get_args(Divergence)
        for tail in get_args(Tail)
        if tail != "reweight" or divergence == "reverse_kl"
    ],
    *[("full", divergence, "drop") for divergence in get_args(Divergence)],  # it has no tail
    ("sampled", "reverse_kl", "drop"),  # which estimates the reverse KL alone
]
assert {support for support, *_ in FORMS} == set(get_args(LossSupport))
