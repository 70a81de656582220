"""`opd-trl plan`: what a training run takes on each GPU, whether it fits, and which setting to change."""

import json
import sys
import warnings


HELP = """\
usage: opd-trl plan --config RECIPE [--gpus N] [--gpu-memory GIB] [--prompt-length N] [--student-config DIR]
                    [--teacher-config [NAME=]DIR ...] [--json FILE] [--FIELD VALUE ...]
                    [flags of accelerate launch]

Sizes a training run before it starts: an estimate of the memory on each GPU, component by component, for the engine
of --accelerate_config and for every other one, and the settings that save most. Nothing is loaded but the config.json
of the models.

Examples
  # the recipe as it is, on 8 GPUs of 80 GiB
  opd-trl plan --config math/opd_qwen3_1.7b_from_8b --accelerate_config zero2
  # without the hub: folders that hold the config.json of the models
  opd-trl plan --config math/opd_qwen3_1.7b_from_8b --student-config qwen3-1.7b --teacher-config qwen3-8b
  # a teacher behind opd-trl serve-teacher leaves its LM head and its hidden states on each GPU
  opd-trl plan --config math/opd_qwen3_1.7b_from_8b --teacher_server_url http://10.0.0.2:8001
  # would LoRA fit one GPU of 24 GiB?
  opd-trl plan --config my_recipe.yaml --use_peft --accelerate_config single_gpu --gpu-memory 24

  --config RECIPE         a name (`opd-trl recipes list`) or a YAML file; its keys are flags too, as for opd and opsd
  --gpus N                how many GPUs; default: num_processes, or those of the accelerate configuration, or 8
  --gpu-memory GIB        memory of one GPU; default 80
  --prompt-length N       tokens of a prompt, padding included; default 512. The teacher's: max_teacher_prompt_length,
                          or the same
  --student-config DIR    folder with the student's config.json, in place of model_name_or_path
  --teacher-config DIR    folder with the teacher's config.json, in place of teacher_model_name_or_path; of several
                          teachers NAME=DIR for each that is not at hand. A served teacher whose sizes nothing gives is
                          left out, and the report says so: the server is not asked
  --json FILE             write all figures, in bytes

Exit status: 0 fits (tight included: only the reserve of 10 % is touched), 1 does not fit, 2 bad input.
"""


def main(argv: list[str]) -> int:
    """Run `opd-trl plan` and return its exit status."""
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the training process gives them
            from .planning.command import plan

            figures, path = plan(argv)
        if path is not None:
            path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    except (ValueError, ImportError, OSError) as error:
        print(f"opd-trl plan: error: {error}", file=sys.stderr)
        return 2
    from .planning.report import show

    show(figures)
    return int(figures["verdict"] == "does not fit")
