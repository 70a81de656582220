"""Heads that are sharded over two processes, each with its own number of tokens: no hang, the same numbers."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests import tiny
from tests.distributed.launch import deviation, free_port, needs_deepspeed, run_job


@needs_deepspeed
def test_zero_3_trains_as_one_process_where_a_rank_has_no_token_to_learn_from(tmp_path, student_path, teacher_path):
    """Rows 4 to 7 go to the second rank; their completions end within the tokens that are skipped."""
    setting = {
        "kind": "opd",
        "student": student_path,
        "teacher": teacher_path,
        "lengths": [8, 7, 6, 5, 2, 2, 2, 2],
        "options": {"num_loss_tokens_to_skip": 2},
    }
    reference = run_job("1 process", tmp_path / "one", per_device=8, accumulate=1, **setting)
    sharded = run_job("ZeRO-3", tmp_path / "zero3", per_device=4, accumulate=1, **setting)
    assert all(step["loss"] > 0.1 for step in reference.log)
    assert max(deviation(sharded, reference).values()) < 1e-5


KEPT = {"none on rank 1": (6, 0), "more than one chunk on rank 1": (1, 8)}


def batch(num_kept: int, seed: int) -> dict[str, torch.Tensor]:
    """A row of 5 prompt and 8 completion tokens, of which the first `num_kept` count."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 103, (1, 13), generator=generator)
    inputs = {"prompt_ids": ids[:, :5], "completion_ids": ids[:, 5:]}
    inputs |= {"prompt_mask": torch.ones(1, 5).long(), "completion_mask": torch.ones(1, 8).long()}
    return inputs | {"loss_mask": (torch.arange(8) < num_kept).long()[None]}


def one_pass(student, teacher, inputs, num_tokens) -> torch.Tensor:
    """Both forwards of a trainer's step, each through the engine's wrapper, and the gradient."""
    from trl.models.utils import _ForwardRedirection

    from opd_trl.losses.objective import Objective
    from opd_trl.models.forward import read_head
    from opd_trl.teachers.scores import HiddenStates
    from opd_trl.trainers.passes import student_pass, teacher_pass

    with torch.no_grad():
        hidden_states = _ForwardRedirection()(teacher, teacher, teacher_pass, teacher, inputs)
    result = _ForwardRedirection()(
        student,
        student,
        student_pass,
        student,
        inputs,
        {"": HiddenStates(None, hidden_states, read_head(teacher))},
        objective=Objective(top_k=5, tail="drop", chunk_size=3),
        num_rows=103,
        num_loss_tokens=torch.tensor(float(num_tokens)),
        router_loss=False,
        policy_temperature=1.0,
    )
    (result.loss + 0.1 * result.per_token_logps.sum() / num_tokens).backward()
    return result.loss.detach()


def fsdp2_rank(rank: int, port: str, kept: tuple[int, int], tied: bool, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    models = [tiny.build_model(seed=seed, tie_word_embeddings=tied) for seed in (0, 1)]
    mesh = dist.init_device_mesh("cpu", (2,))
    for model in models:
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)  # the teacher's head is in pieces after its pass
    # FSDP averages gradients over the ranks: each divides by half of the tokens, as the trainer does.
    loss = one_pass(*models, batch(kept[rank], seed=rank), sum(kept) / 2)
    dist.all_reduce(loss)
    gradients = {name: x.grad.full_tensor() for name, x in models[0].named_parameters() if x.grad is not None}
    if rank == 0:
        torch.save({"loss": loss / 2, **gradients}, Path(folder) / "out.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_fsdp2_gives_the_loss_and_gradients_of_the_whole_batch(tmp_path, kept, tied):
    mp.start_processes(fsdp2_rank, (free_port(), kept, tied, str(tmp_path)), nprocs=2, start_method="forkserver")
    found = torch.load(tmp_path / "out.pt")
    student, teacher = (tiny.build_model(seed=seed, tie_word_embeddings=tied) for seed in (0, 1))
    losses = [one_pass(student, teacher, batch(n, seed=rank), sum(kept)) for rank, n in enumerate(kept)]
    expected = {name: x.grad for name, x in student.named_parameters() if x.grad is not None}
    torch.testing.assert_close(found.pop("loss"), sum(losses), rtol=1e-5, atol=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
