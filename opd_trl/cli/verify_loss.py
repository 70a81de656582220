"""`opd-trl verify-loss`: does the configured loss lead to the teacher, on your own models and prompts?"""

HELP = """\
usage: opd-trl verify-loss --config RECIPE [--prompts N] [--top-ks K ...] [--json FILE] [--FIELD VALUE ...]

Compares the gradient of the configured loss with the exact one over the whole vocabulary: on your student, your
teacher and completions that your student writes for your prompts, in the logits and in the parameters of its last
layer. Beside it every other form of the loss: plain TopK, stop-gradient, renormalised, tail bucket, the sampled token,
for several K. Then the student becomes its own teacher: loss and gradient must be 0. Nothing is trained or written.

Examples
  # the recipe as it is; 16 prompts take a minute on a small model
  opd-trl verify-loss --config system_prompt/demo
  # would a smaller support do?
  opd-trl verify-loss --config math/opd_qwen3_1.7b_from_8b --loss_top_k 5 --prompts 32
  # what the textbook TopK does: exit status 1
  opd-trl verify-loss --config math/opd_qwen3_1.7b_from_8b --loss_tail drop --stop_gradient false

  --config RECIPE         a name (`opd-trl recipes list`) or a YAML file; its keys are flags too, as for opd and opsd
  --prompts N             prompts of the training set, drawn with the recipe's seed; default 16
  --top-ks K ...          K of the other forms; default 1 5 20 100
  --json FILE             write all figures

Columns: nats a token; cosine and norm against the exact gradient; bias, what is left of the gradient where the teacher
equals the student (a right loss has 0); probability of student and teacher outside the support.

Exit status: 0 rests at the teacher, 1 does not (training would unlearn a perfect student), 2 bad input.
"""


def main(argv: list[str]) -> int:
    """Run `opd-trl verify-loss` and return its exit status."""
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    from .checking.loss import PROG, show, verify_loss
    from .terminal import run_check

    return run_check(PROG, argv, verify_loss, show)
