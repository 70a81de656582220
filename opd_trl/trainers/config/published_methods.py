"""The published methods by name: what `method:` sets, where it comes from, what differs here."""

import logging
import textwrap

from ...spelling import did_you_mean
from .method import Method
from .newer_methods import NEWER_METHODS


logger = logging.getLogger(__name__)


METHODS = {
    "many_faces": Method(
        "stop-gradient and renormalised TopK on what both models hold likely",
        "2605.11182",
        "either",
        {
            "divergence": "reverse_kl",
            "loss_support": "intersection",
            "loss_top_k": 20,
            "loss_tail": "renormalize",
            "stop_gradient": True,
            "temperature": 1.0,
            "top_p": 0.95,
            "learning_rate": 2e-6,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "weight_decay": 0.1,
            "adam_beta1": 0.9,
            "adam_beta2": 0.98,
        },
    ),
    "opsd": Method(
        "forward KL over the vocabulary, every entry's term bounded",
        "2601.18734",
        "self",
        {
            "teacher_model_kind": "base",
            "divergence": "forward_kl",
            "loss_support": "full",
            "loss_pointwise_clip": 0.05,
            "temperature": 1.1,
            "learning_rate": 2e-5,
        },
        "Nothing in the loss; mind the clip. It bounds signed terms from above, so the loss can turn negative, and an "
        "entry that it cuts (one that the teacher wants raised most) is pushed down. The paper names learning rates "
        "from 2e-5 to 2e-4, its released script 5e-6 with max_grad_norm 0.1.",
    ),
    "sdft": Method(
        "reverse KL over the vocabulary against a slow moving average of the student",
        "2601.19897",
        "self",
        {
            "teacher_model_kind": "ema",
            "teacher_update_rate": 0.01,
            "divergence": "reverse_kl",
            "loss_support": "full",
            "num_loss_tokens_to_skip": 3,
            "loss_importance_cap": 2.0,
            "learning_rate": 2e-5,
        },
        "Weights are per token; the authors average them over a completion. Their repository takes the forward KL "
        "since April 2026: set divergence: forward_kl.",
    ),
    "sdpo": Method(
        "JSD on the student's Top-100 and a tail bucket; the context is a success or feedback",
        "2601.20802",
        "self",
        {
            "teacher_model_kind": "ema",
            "teacher_update_rate": 0.05,
            "divergence": "jsd",
            "divergence_beta": 0.5,
            "loss_support": "student",
            "loss_top_k": 100,
            "loss_tail": "bucket",
            "loss_importance_cap": 2.0,
            "privileged_builder": "feedback",
            "learning_rate": 1e-5,
        },
        "The context is a column of feedback, unless sibling_context: true (with privileged_builder: solution, "
        "reward_funcs and num_generations: 8) takes the first success of the same prompt, as published; policy_coef: "
        "0 leaves GRPO's own loss out then.",
    ),
    "thinking_machines": Method(
        "the teacher's log-ratio of the sampled token as its advantage",
        "https://thinkingmachines.ai/blog/on-policy-distillation",
        "separate",
        {"loss_support": "sampled", "learning_rate": 1e-4},
        "The learning rate is that of LoRA (rank 128); full fine-tuning: 5e-5.",
    ),
    "rethinking": Method(
        "policy gradient on the student's Top-16, weighted by the shares of their mass",
        "2604.13016",
        "separate",
        {
            "divergence": "reverse_kl",
            "loss_support": "student",
            "loss_top_k": 16,
            "loss_tail": "reweight",
            "stop_gradient": True,
            "temperature": 1.0,
            "learning_rate": 1e-6,
        },
        "As in the authors' code, whose log-ratios are those of the whole vocabulary.",
    ),
    "revisiting": Method(
        "reverse KL renormalised on the teacher's Top-32",
        "2603.25562",
        "separate",
        {
            "divergence": "reverse_kl",
            "loss_support": "teacher",
            "loss_top_k": 32,
            "loss_tail": "renormalize",
            "top_p": 0.9,
            "learning_rate": 1e-6,
        },
        "The mask of special tokens is off, as in the authors' TopK recipes: loss_skip_first: ['<think>'] switches it "
        "on.",
    ),
    "vopd": Method(
        "the sampled token with minus the reverse KL as its baseline",
        "2605.07865",
        "separate",
        {
            "loss_support": "sampled",
            "loss_baseline": "full",
            "temperature": 1.0,
            "learning_rate": 1e-5,
            "lr_scheduler_type": "cosine",
        },
        "Without GRPO's ratio clip. The Top-100 option: loss_baseline: top_k with loss_top_k: 100.",
    ),
    "opcd": Method(
        "reverse KL on the student's Top-256, the tail dropped, from a context that is taken away",
        "2602.12275",
        "self",
        {
            "teacher_model_kind": "base",
            "privileged_builder": "system_prompt",
            "divergence": "reverse_kl",
            "loss_support": "student",
            "loss_top_k": 256,
            "loss_tail": "drop",
            "stop_gradient": True,
            "temperature": 1.0,
            "learning_rate": 5e-6,
        },
        "The log-ratio is held constant (stop_gradient), which takes the bias off the dropped tail; published is the "
        "plain form (stop_gradient: false).",
    ),
    "exopd": Method(
        "the sampled token, rewarded beyond the teacher and away from a reference model",
        "2602.12125",
        "separate",
        {
            "loss_support": "sampled",
            "loss_extrapolation": 1.25,
            "loss_importance_cap": 5.0,
            "temperature": 1.0,
            "learning_rate": 1e-5,
        },
        "The reference is the student at step 0; reference_model_name_or_path takes another, such as the teacher "
        "before its reinforcement learning.",
    ),
    "tcod": Method(
        "the sampled token in rollouts that may have more and more turns of calling tools",
        "2604.24005",
        "separate",
        {
            "loss_support": "sampled",
            "tool_depth_start": 1,
            "tool_depth_steps": 6,
            "max_tool_calling_iterations": 29,
            "temperature": 1.0,
            "learning_rate": 1e-6,
        },
        "The forward-to-backward form, with the numbers of the authors' ALFWorld run (one turn more every 6 steps, 30 "
        "at most). They average over the tokens of a rollout and then over rollouts; here every token weighs alike. "
        "Their rollouts may be two steps old; ours are fresh. It needs tools or an environment_factory.",
    ),
    "gkd": Method(
        "JSD over the vocabulary on the student's own text",
        "2306.13649",
        "separate",
        {"divergence": "jsd", "divergence_beta": 0.5, "loss_support": "full", "lmbda": 1.0},
        "The paper's on-policy form. The mixed one, TRL's default, is lmbda: 0.5, and needs a column completion: text "
        "of a data set or of the teacher.",
    ),
    **NEWER_METHODS,
}


#: All fields that a method sets.
FIELDS = frozenset(name for method in METHODS.values() for name in method.fields)


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name in METHODS:
        return METHODS[name]
    hint = did_you_mean(name, METHODS, otherwise="leave it out and set the fields themselves.")
    raise ValueError(f"method={name!r} is not one of the published methods {', '.join(METHODS)}: {hint}")


def apply_method(config, given: frozenset[str]) -> None:
    """Set the fields of `config.method`, except those in `given`.

    Raises:
        ValueError: an unknown method.
    """
    if config.method is None:
        return
    method = find_method(config.method)
    fields = {name: value for name, value in method.fields.items() if hasattr(config, name)}
    by_hand = {name: getattr(config, name) for name in fields if name in given}
    for name in fields.keys() - by_hand.keys():
        setattr(config, name, fields[name])
    changed = {name: value for name, value in by_hand.items() if value != fields[name]}
    if changed:
        said = ", ".join(f"{name}={value!r} (published: {fields[name]!r})" for name, value in changed.items())
        logger.warning("method=%r (%s): given by hand and kept: %s.", config.method, method.source, said)
    if method.teacher != "either" and config.teaches_itself != (method.teacher == "self"):
        logger.warning(
            "method=%r (%s) is published with %s; here it is %s, with the method's loss.",
            config.method,
            method.source,
            "a separate teacher" if config.teaches_itself else "the student as its own teacher (OPSDTrainer)",
            "the student itself" if config.teaches_itself else "a separate model",
        )


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
