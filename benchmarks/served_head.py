"""What the check of a pooled teacher sees on a real model: the right states and head, and wrong ones. Prints a table.

    python benchmarks/served_head.py MODEL

MODEL is a folder or hub id of a causal language model of text; it runs on the CPU in its own dtype.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd_trl.losses.head import Head
from opd_trl.models.saved_head import read_saved_head
from opd_trl.teachers.served_head import NORM_TOLERANCE, TEXT_LENGTH, distance_from_norm, real_and_shuffled
from opd_trl.teachers.server import PROBE_TEXT


def cases(model, ids: list[int], head: Head) -> dict[str, tuple[torch.Tensor, Head]]:
    """Name -> hidden states `(n - 1, H)`, and the head that reads them."""
    read = torch.tensor([ids])
    before = []
    norm = model.get_decoder().norm
    hook = norm.register_forward_pre_hook(lambda module, inputs: before.append(inputs[0]))
    with torch.no_grad():
        right = model.get_decoder()(read).last_hidden_state[0, :-1]
        hook.remove()
        embedded = model.get_decoder().norm(model.get_input_embeddings()(read))[0, :-1]
    generator = torch.Generator().manual_seed(0)
    weight = head.weight[torch.randperm(len(head.weight), generator=generator)]
    drawn = torch.randn(head.weight.shape, generator=generator).to(head.weight) * head.weight.std()
    return {
        "right": (right, head),
        "no final norm": (before[0][0, :-1], head),
        "final norm without its weights": (right / norm.weight.detach(), head),
        "vectors of length 1": (right / right.norm(dim=-1, keepdim=True), head),
        "vectors of mean square 1": (right / right.float().pow(2).mean(-1, keepdim=True).sqrt().to(right), head),
        "rows of the head in another order": (right, Head(weight, head.bias)),
        "a head of random numbers": (right, Head(drawn, head.bias)),
        "states of the embeddings alone": (embedded, head),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub id")
    path = parser.parse_args().model
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    ids = AutoTokenizer.from_pretrained(path)(PROBE_TEXT)["input_ids"][:TEXT_LENGTH]
    head, norm = read_saved_head(path)
    print(f"{len(ids)} tokens; off by more than {NORM_TOLERANCE} of their length is an error\n")
    print("| states and head | off by, least and most | nats a token | in random orders: mean, best | as good |")
    print("|---|---|---|---|---|")
    for name, (states, other) in cases(model, ids, head).items():
        off = distance_from_norm(states.float(), norm)
        real, shuffled = real_and_shuffled(states, other, ids)
        orders = f"{-shuffled.mean():.2f}, {-shuffled.max():.2f}"
        as_good = f"{int((shuffled >= real).sum()):,} of {len(shuffled):,}"
        print(f"| {name} | {off.min():.2g}, {off.max():.2g} | {-real:.2f} | {orders} | {as_good} |")


if __name__ == "__main__":
    main()
