"""What vLLM says of a sequence against the same model in transformers, both in float32."""

import pytest
import torch

from opd_trl.teachers import TeacherServer
from tests.vllm.conftest import API_KEY, MAX_LOGPROBS
from tests.vllm.server import MAX_LENGTH


VOCAB = 103
LENGTHS = [2, 7, 130, 61, MAX_LENGTH - 1]  # vLLM needs room for one generated token
TOLERANCE = 1e-3  # nats


@pytest.fixture(scope="module")
def server(url) -> TeacherServer:
    return TeacherServer(url, api_key=API_KEY, timeout=120.0, retries=0, concurrency=2)


def random_sequences(lengths: list[int], *, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def dense_log_probs(teacher, sequence: list[int], num_scored: int) -> torch.Tensor:
    """`(num_scored, V)`: what predicts each of the last tokens."""
    return teacher(torch.tensor([sequence])).logits[0, :-1].log_softmax(-1)[-num_scored:]


@pytest.mark.parametrize("top_k", [1, 20, MAX_LOGPROBS])
def test_log_probs_of_the_top_k_and_of_the_sampled_tokens_are_those_of_transformers(server, teacher, measured, top_k):
    sequences = random_sequences(LENGTHS)
    num_scored = [1, 6, 40, 60, MAX_LENGTH - 2]
    scores = server.log_probs(sequences, num_scored, top_k=top_k, vocab_size=VOCAB)
    differences = []
    for sequence, count, found in zip(sequences, num_scored, scores, strict=True):
        expected = dense_log_probs(teacher, sequence, count)
        sampled = expected.gather(-1, torch.tensor(sequence[-count:]).unsqueeze(-1)).squeeze(-1)
        assert found.ids.tolist() == expected.topk(top_k, dim=-1).indices.tolist()
        differences += [(found.log_probs - expected.gather(-1, found.ids)).abs().max().item()]
        differences += [(found.sampled_log_probs - sampled).abs().max().item()]
    measured(f"parity with transformers, top_k={top_k}, {sum(num_scored)} positions: max {max(differences):.1e} nats")
    assert max(differences) < TOLERANCE


def test_the_same_request_twice_and_a_shared_prefix_get_the_same_numbers(server, teacher):
    """vLLM's prefix cache is on by default."""
    (sequence,) = random_sequences([300], seed=1)
    longer = [*sequence, *random_sequences([100], seed=2)[0]]
    for asked in (sequence, sequence, longer):
        (scores,) = server.log_probs([asked], [len(asked) - 1], top_k=5, vocab_size=VOCAB)
        expected = dense_log_probs(teacher, asked, len(asked) - 1).topk(5, dim=-1)
        assert scores.ids.tolist() == expected.indices.tolist()
        torch.testing.assert_close(scores.log_probs, expected.values, rtol=0, atol=TOLERANCE)


def test_the_server_says_how_long_a_sequence_may_be_and_is_not_taken_for_ours(server):
    assert server.max_length == MAX_LENGTH
    assert not server.is_ours
