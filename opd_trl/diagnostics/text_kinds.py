"""Whose text a batch holds, and under which names its figures are logged."""

from enum import IntEnum


#: Figures that change with the length of a text alone.
BY_LENGTH = ("completions/", "distillation/divergence_q")


class TextKind(IntEnum):
    """What the completions of a generation batch are.

    Rules compare a run with its own first lines, so text of another kind has names of its own.

    Attributes:
        WHOLE: the student's own, from the prompt to their end.
        PARTIAL: the student's own, behind a given prefix, or stopped by the schedule of the rollouts' length.
        GIVEN: of the data set.
    """

    WHOLE = 0
    PARTIAL = 1
    GIVEN = 2

    def named(self, metric: str) -> str:
        """The name of a metric for text of this kind: `family/kind/name`.

        Example:
            >>> TextKind.GIVEN.named("support/overlap"), TextKind.GIVEN.named("entropy")
            ('support/given/overlap', 'given/entropy')
            >>> TextKind.PARTIAL.named("completions/mean_length"), TextKind.PARTIAL.named("support/overlap")
            ('completions/partial/mean_length', 'support/overlap')
        """
        if self is TextKind.WHOLE or (self is TextKind.PARTIAL and not metric.startswith(BY_LENGTH)):
            return metric
        family, slash, name = metric.partition("/")
        return "/".join([family, self.name.lower(), name] if slash else [self.name.lower(), metric])
