"""`opd-trl preflight`: what will fail, before training."""

HELP = """\
usage: opd-trl preflight --config RECIPE [--prompts N] [--rule RULE ...] [--teacher MODEL ...] [--contexts N]
                         [--json FILE] [--FIELD VALUE ...]

Looks at a run before it starts, on your student, teacher and prompts. Nothing is trained, nothing written. The student
answers some prompts; on these answers every check runs:

  templates   what both models read, side by side, with the first token that is learned; EOS, padding, thinking,
              lengths; is the privileged context whole?
  prefixes    does the teacher make sense of what the student writes? divergence, overlap, entropy by quarter of the
              answer; the teacher's own answers against what it makes of half of the student's (with --rule, or with
              reward_funcs: [math_accuracy] and a column answer)
  coverage    does the teacher want tokens that the student never gives, so that reverse KL cannot find them?
  loss        does the loss rest at the teacher? the rows of `opd-trl verify-loss`
  context     the PI test: which part of the signal differs from row to row and cannot be learned without the context?
  cost        seconds of a step by phase, peak memory

Each figure has a threshold with its source, a verdict (ok, fix, stop) and the line of the recipe to change.

Examples
  # the recipe as it is
  opd-trl preflight --config math/opd_qwen3_1.7b_from_8b
  # the demo in a few minutes on a CPU; answers judged by a rule
  opd-trl preflight --config system_prompt/demo --prompts 16 --rule one_sentence:Arr,
  # which teacher? ranked by overlap on the student's own text
  opd-trl preflight --config math/opd_qwen3_1.7b_from_8b --teacher Qwen/Qwen3-8B --teacher runs/rlvr

  --config RECIPE         a name (`opd-trl recipes list`) or a YAML file; its keys are flags too, as for opd and opsd
  --prompts N             prompts of the training set, drawn with the recipe's seed; default 64
  --rule RULE             judge answers by a rule (`opd-trl eval --help` lists them); repeat it for several
  --teacher MODEL         a teacher to rank; repeat it. Default: the recipe's alone
  --contexts N            contexts of the PI test for each prompt: the row's own and others; default 4
  --json FILE             write all figures

Exit status: 0 no check says stop, 1 one does, 2 bad input.
"""


def main(argv: list[str]) -> int:
    """Run `opd-trl preflight` and return its exit status."""
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    from ..preflight.inspection import PROG, preflight
    from .checking.card import show
    from .terminal import run_check

    return run_check(PROG, argv, preflight, show)
