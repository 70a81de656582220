"""On-policy distillation on top of Hugging Face TRL.

Names load on first use, so that `import opd_trl` costs nothing and `opd_trl.losses` needs torch alone.
"""

import importlib


__version__ = "0.1.0"

_LAZY = {
    "OPDConfig": "opd_trl.trainers.config.opd_config",
    "OPSDConfig": "opd_trl.trainers.config.opsd_config",
    "OPDTrainer": "opd_trl.trainers.opd_trainer",
    "OPSDTrainer": "opd_trl.trainers.opsd_trainer",
}
_SUBPACKAGES = ("losses", "privileged", "evaluation", "diagnostics", "models", "teachers", "data", "trainers")

__all__ = ["OPDConfig", "OPDTrainer", "OPSDConfig", "OPSDTrainer"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_SUBPACKAGES])
