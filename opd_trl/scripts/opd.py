"""On-policy distillation from a separate teacher.

```bash
accelerate launch -m opd_trl.scripts.opd \
    --model_name_or_path Qwen/Qwen3-1.7B \
    --teacher_model_name_or_path Qwen/Qwen3-8B \
    --dataset_name trl-lib/ultrafeedback-prompt \
    --output_dir runs/opd
```

`opd-trl opd` takes the same arguments and launches for you.
"""

import argparse

from ..addresses import is_url
from ..trainers.config.config_checks import SEPARATE_TEACHERS
from . import common
from .common import Train


def check_arguments(script_args, training_args, model_args, dataset_args) -> None:
    """Check what needs no model and no data to be read; raise ValueError with the remedy."""
    common.check_arguments(script_args, training_args, model_args, dataset_args)
    if all(getattr(training_args, name) is None for name in SEPARATE_TEACHERS):
        raise ValueError(
            "no teacher is given. Set teacher_model_name_or_path, e.g. to Qwen/Qwen3-8B, teacher_server_url or "
            "teachers, or use `opd-trl opsd` with a privileged context, where the student is its own teacher."
        )


def main(script_args, training_args, model_args, dataset_args, *, train: Train = common.train) -> None:
    """Train with [`OPDTrainer`]. The teacher takes the student's attention unless `teacher_model_init_kwargs` says."""
    check_arguments(script_args, training_args, model_args, dataset_args)
    from .. import OPDTrainer

    named = [training_args.teacher_model_name_or_path, *(training_args.teachers or {}).values()]
    if model_args.attn_implementation is not None and any(name and not is_url(name) for name in named):
        given = training_args.teacher_model_init_kwargs or {}
        training_args.teacher_model_init_kwargs = {"attn_implementation": model_args.attn_implementation, **given}
    train(OPDTrainer, script_args, training_args, model_args, dataset_args)


def make_parser(subparsers: argparse._SubParsersAction | None = None, prog: str | None = None):
    """Return the strict parser of this script: fields of OPDConfig, of the model and of the data."""
    from .. import OPDConfig

    return common.make_parser("opd", OPDConfig, subparsers, prog)


if __name__ == "__main__":
    common.run(make_parser(), check_arguments, main)
