"""How much one sampled token's gradient scatters: the sampled token, and TopK with the sampled token's tail, by its c.

    python benchmarks/tail_variance.py                       # random pairs of distributions over 1,000 tokens
    python benchmarks/tail_variance.py --study runs/mechanisms/0      # weak and own of a seed of `opd-trl reproduce`

The variance is exact: over every token y that could be drawn, E |g_y - E g|^2 in the logits, mean of the positions,
over the squared norm of the exact gradient E g, which is that of the whole vocabulary for every form (checked here).
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from opd_trl.losses import select_support


VOCAB, POSITIONS, SHARPNESS = 1000, 256, 3.0
#: How far the teacher's logits lie from the student's, one standard deviation.
DISTANCES = {"a near teacher": 0.3, "a teacher": 1.0, "a far teacher": 3.0}
SUPPORTS = ("student", "teacher", "union")
CENTRES = ("0", "sum_S p r", "log-ratio of the tails")


def scatter(log_p: Tensor, log_q: Tensor, inside: Tensor, centre: Tensor) -> float:
    """Variance of the gradient over y ~ p, over the squared norm of its mean; `inside` `(n, V)`, `centre` `(n, 1)`.

    g_y = a + 1[y not in S] (r_y - c)(e_y - p), of which a does not depend on y.
    """
    p, r = log_p.exp(), log_p - log_q
    of_y = ~inside * (r - centre)
    squares = (p * of_y**2 * (1 - 2 * p + p.square().sum(-1, keepdim=True))).sum(-1)
    moved = p * of_y - p * (p * of_y).sum(-1, keepdim=True)  # E of the sampled term
    on_support = p * ((r - centre) * inside - (p * (r - centre) * inside).sum(-1, keepdim=True))
    exact = p * (r - (p * r).sum(-1, keepdim=True))
    torch.testing.assert_close(on_support + moved, exact, rtol=0, atol=1e-10)
    return ((squares - moved.square().sum(-1)).mean() / exact.square().sum(-1).mean()).item()


def rows(log_p: Tensor, log_q: Tensor):
    """Name of a form, mean student mass on its support, and its scatter for each c."""
    nothing = torch.zeros_like(log_p, dtype=torch.bool)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1, keepdim=True)
    found = [scatter(log_p, log_q, nothing, c) for c in (torch.zeros_like(divergence), divergence)]
    yield "sampled token; with its baseline", 0.0, [*found, None]
    for top_k in (5, 20):
        for support in SUPPORTS:
            ids, mask = select_support(log_p, log_q, top_k=top_k, support=support)
            inside = torch.zeros_like(log_p).scatter_add(-1, ids, mask.to(log_p.dtype)) > 0
            masses = [(x.exp() * inside).sum(-1, keepdim=True) for x in (log_p, log_q)]
            value = (log_p.exp() * (log_p - log_q) * inside).sum(-1, keepdim=True)
            tails = [(1 - mass).clamp(min=1e-12).log() for mass in masses]
            centres = torch.zeros_like(value), value, tails[0] - tails[1]
            mass = masses[0].mean().item()
            yield f"{support}, K = {top_k}", mass, [scatter(log_p, log_q, inside, c) for c in centres]


def random_pair(distance: float) -> tuple[Tensor, Tensor]:
    """Log p and log q of random logits."""
    torch.manual_seed(0)
    logits = SHARPNESS * torch.randn(POSITIONS, VOCAB, dtype=torch.float64)
    others = logits + distance * torch.randn(POSITIONS, VOCAB, dtype=torch.float64)
    return logits.log_softmax(-1), others.log_softmax(-1)


@torch.no_grad()
def study_pair(home: Path) -> tuple[Tensor, Tensor]:
    """Log p and log q of the weak student and its teacher at the tokens that the student writes."""
    from opd_trl.reproduce.arms import problems
    from opd_trl.reproduce.measures import answer, prompt_ids
    from opd_trl.reproduce.models import load

    models = [load(home / name)[0].eval() for name in ("weak", "own")]
    _, tokenizer = load(home / "weak")
    asked = problems("test", prompts="solve", context=None)[:64]
    answers = answer(models[0], tokenizer, asked, seeds=[0], temperature=1.0)
    parts = ([], [])
    for row, completion in zip(asked, answers, strict=True):
        prompt = prompt_ids(tokenizer, row)
        ids = torch.tensor([[*prompt, *tokenizer.encode(completion.text, add_special_tokens=False)]])
        for part, model in zip(parts, models, strict=True):
            part.append(model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1))
    return torch.cat(parts[0]), torch.cat(parts[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, help="folder of a seed of `opd-trl reproduce mechanisms`")
    args = parser.parse_args()
    pairs = {name: random_pair(distance) for name, distance in DISTANCES.items()}
    if args.study:
        pairs = {"a weak student and its teacher": study_pair(args.study)}
    for title, pair in pairs.items():
        print(
            f"\n| {title} | mass on S | " + " | ".join(f"c = {name}" for name in CENTRES) + " |\n|---|---|---|---|---|"
        )
        for name, mass, found in rows(*pair):
            cells = ["" if x is None else f"{x:.3g}" for x in found]
            print(f"| {name} | {mass:.3f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
