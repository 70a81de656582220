"""What the model card of a trained student cites."""

import textwrap


PAPER = {
    "title": "The Many Faces of On-Policy Distillation: Pitfalls, Mechanisms, and Fixes",
    "id": "2605.11182",
    "citation": textwrap.dedent("""\
        @article{manyfaces2026opd,
            title  = {{The Many Faces of On-Policy Distillation: Pitfalls, Mechanisms, and Fixes}},
            year   = 2026,
            eprint = {arXiv:2605.11182},
        }"""),
}
