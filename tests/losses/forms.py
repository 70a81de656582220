"""Every form of the loss that is allowed and not the same as another."""

from opd_trl.losses.divergences import DIVERGENCES
from opd_trl.losses.support import SUPPORTS, TAILS, TOP_K_SUPPORTS


FORMS = [
    *[
        (support, divergence, tail)
        for support in TOP_K_SUPPORTS
        for divergence in DIVERGENCES
        for tail in TAILS
        if tail not in ("reweight", "sample") or divergence == "reverse_kl"
    ],
    *[("full", divergence, "drop") for divergence in DIVERGENCES],  # it has no tail
    ("sampled", "reverse_kl", "drop"),  # which estimates the reverse KL alone
]
assert {support for support, *_ in FORMS} == set(SUPPORTS)
