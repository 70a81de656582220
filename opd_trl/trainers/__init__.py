"""Floor 4: the only place that subclasses TRL."""

import importlib


_LAZY = {
    "OPDConfig": "config.opd_config",
    "OPSDConfig": "config.opsd_config",
    "OPDTrainer": "opd_trainer",
    "OPSDTrainer": "opsd_trainer",
}

__all__ = ["OPDConfig", "OPDTrainer", "OPSDConfig", "OPSDTrainer"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
