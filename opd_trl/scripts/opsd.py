"""On-policy self-distillation: the teacher is the student itself, reading a privileged context.

```bash
accelerate launch -m opd_trl.scripts.opsd \
    --model_name_or_path Qwen/Qwen3-1.7B \
    --dataset_name trl-lib/ultrafeedback-prompt \
    --privileged_context "You answer in one short, friendly sentence." \
    --output_dir runs/opsd
```

`opd-trl opsd` takes the same arguments and launches for you.
"""

import argparse

from . import common
from .common import Train


check_arguments = common.check_arguments


def main(script_args, training_args, model_args, dataset_args, *, train: Train = common.train) -> None:
    """Train with [`OPSDTrainer`], which makes the student its own teacher, save, and push where asked."""
    check_arguments(script_args, training_args, model_args, dataset_args)
    from .. import OPSDTrainer

    train(OPSDTrainer, script_args, training_args, model_args, dataset_args)


def make_parser(subparsers: argparse._SubParsersAction | None = None, prog: str | None = None):
    """Return the strict parser of this script: fields of OPSDConfig, of the model and of the data."""
    from .. import OPSDConfig

    return common.make_parser("opsd", OPSDConfig, subparsers, prog)


if __name__ == "__main__":
    common.run(make_parser(), check_arguments, main)
