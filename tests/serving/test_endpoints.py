import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import torch
from safetensors import safe_open
from safetensors.torch import load

from tests import tiny
from tests.serving.conftest import NOT_A_NUMBER, VOCAB


SEQUENCES = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [30, 31, 32, 33, 34], [40, 41], [50, 51, 52, 53]]


def complete(url: str, **body) -> dict:
    response = requests.post(f"{url}/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_health_and_the_list_of_models(url):
    assert requests.get(f"{url}/health").json() == {"status": "ok"}
    model = {"id": "teacher", "object": "model", "owned_by": "opd_trl", "max_model_len": 400}
    assert requests.get(f"{url}/v1/models").json() == {"object": "list", "data": [model]}


def test_the_vocabulary_is_that_of_the_tokenizer(url):
    assert requests.get(f"{url}/v1/vocabulary").json() == {"vocab": tiny.build_tokenizer().get_vocab()}


def test_the_head_is_the_models_with_its_conventions(url, model, tmp_path):
    response = requests.get(f"{url}/v1/head")
    assert response.headers["content-type"] == "application/octet-stream"
    (tmp_path / "head").write_bytes(response.content)
    with safe_open(tmp_path / "head", "pt") as file:
        assert set(file.keys()) == {"weight"}
        assert torch.equal(file.get_tensor("weight"), model.lm_head.weight)
        assert file.metadata() == {"model": "teacher", "logit_scale": "1.0", "final_logit_softcapping": ""}


def test_hidden_states_of_sequences_of_different_lengths_are_those_of_a_local_forward(url, model, tmp_path):
    num_scored = [3, 2, 1, 1, 3]
    body = {"model": "teacher", "sequences": SEQUENCES, "num_scored": num_scored}
    response = requests.post(f"{url}/v1/hidden_states", json=body)
    assert response.headers["content-type"] == "application/octet-stream"
    with torch.no_grad():
        states = [model.model(torch.tensor([ids])).last_hidden_state[0] for ids in SEQUENCES]
    expected = torch.cat([h[-n - 1 : -1] for h, n in zip(states, num_scored, strict=True)])
    got = load(response.content)["hidden_states"]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    (tmp_path / "states").write_bytes(response.content)
    with safe_open(tmp_path / "states", "pt") as file:
        assert file.metadata() == {"model": "teacher"}


def test_hidden_states_and_head_give_the_log_probs_of_the_model(url, local_log_probs):
    body = {"sequences": SEQUENCES[:1], "num_scored": [6]}
    states = load(requests.post(f"{url}/v1/hidden_states", json=body).content)["hidden_states"]
    weight = load(requests.get(f"{url}/v1/head").content)["weight"]
    torch.testing.assert_close((states @ weight.T).log_softmax(-1), local_log_probs(SEQUENCES[0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_prompt_logprobs_are_the_most_probable_ids_and_the_actual_token(url, local_log_probs, temperature):
    top_k = 4
    answer = complete(url, prompt=SEQUENCES, prompt_logprobs=top_k, temperature=temperature, max_tokens=1, echo=True)
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(SEQUENCES)))
    for choice, ids in zip(answer["choices"], SEQUENCES, strict=True):
        assert choice["prompt_token_ids"] == ids
        expected = local_log_probs(ids, temperature)
        first, *positions = choice["prompt_logprobs"]
        assert first is None
        for entries, row, actual in zip(positions, expected, ids[1:], strict=True):
            best = row.topk(top_k).indices.tolist()
            assert {int(token) for token in entries} == {*best, actual}
            for token, entry in entries.items():
                rank = best.index(int(token)) + 1 if int(token) in best else top_k + 1
                assert entry["rank"] == rank
                assert entry["logprob"] == pytest.approx(row[int(token)].item(), abs=1e-5)


def test_requested_ids_are_gathered_at_their_positions(url, local_log_probs):
    requested = [
        [None, [1, 105], [2, 3], None, [8, 8], [], [1, 2, 3]],  # of any length, the prompt's own and repeated ones too
        [[7], [4, 5], [6, 7]],  # nothing is predicted at position 0
        [None, [10], [11], [12], [13]],
        [None, [14]],
        [None, None, None, [15]],
    ]
    for body in ({}, {"prompt_logprobs": 0}):
        answer = complete(url, prompt=SEQUENCES, prompt_logprob_ids=requested, **body)
        for choice, ids, lists in zip(answer["choices"], SEQUENCES, requested, strict=True):
            expected = local_log_probs(ids)
            for j, row in enumerate(choice["prompt_logprobs"][1:], start=1):
                assert {int(token) for token in row} == {ids[j], *(lists[j] or [])}
                for token, entry in row.items():
                    assert entry["logprob"] == pytest.approx(expected[j - 1, int(token)].item(), abs=1e-5)


def test_requested_ids_come_beside_the_most_probable_ones(url, local_log_probs):
    ids = SEQUENCES[1]
    best = local_log_probs(ids)[0].topk(30).indices.tolist()
    rare = local_log_probs(ids)[0].argmin().item()
    answer = complete(url, prompt=ids, prompt_logprobs=30, prompt_logprob_ids=[[None, [best[6], rare], []]])
    entries = answer["choices"][0]["prompt_logprobs"][1]
    assert {int(token) for token in entries} == {*best, rare, ids[1]}
    assert (entries[str(best[6])]["rank"], entries[str(rare)]["rank"]) == (7, 31)


def test_the_numbers_lose_nothing_on_their_way_through_json(url):
    """Floats of nine digits; the same ids are scored twice, on two ways through the head."""
    one = complete(url, prompt=SEQUENCES, prompt_logprobs=3)
    two = complete(url, prompt=SEQUENCES, prompt_logprobs=3)
    for a, b in zip(one["choices"], two["choices"], strict=True):
        assert a["prompt_logprobs"] == b["prompt_logprobs"]
        values = [e["logprob"] for row in a["prompt_logprobs"][1:] for e in row.values()]
        assert torch.tensor(values).double().sub(torch.tensor(values, dtype=torch.float64)).abs().max() < 1e-8


def test_a_text_is_tokenized_and_its_tokens_come_back_as_texts(url):
    tokenizer = tiny.build_tokenizer()
    answer = complete(url, prompt=["ab<", "a"], prompt_logprobs=1)
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [tokenizer.encode("ab<"), [13]]
    rows = answer["choices"][0]["prompt_logprobs"]
    assert rows[1][str(tokenizer.convert_tokens_to_ids("b"))]["decoded_token"] == "b"
    assert all(e["decoded_token"] == tokenizer.decode([int(t)]) for row in rows[1:] for t, e in row.items())
    assert answer["choices"][1]["prompt_logprobs"] == [None]
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 0, "total_tokens": 4}


def test_the_answer_has_the_fields_of_openais(url):
    answer = complete(url, prompt=SEQUENCES[3], prompt_logprobs=1, logit_bias=None, seed=3)
    assert (answer["object"], answer["model"]) == ("text_completion", "teacher")
    assert answer["id"].startswith("cmpl-")
    assert isinstance(answer["created"], int)
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == ("", "length", None)


def test_ids_of_padded_rows_of_the_head_are_scored_too(url, local_log_probs):
    ids = [VOCAB - 1, 105, 104]
    entries = complete(url, prompt=ids, prompt_logprobs=0)["choices"][0]["prompt_logprobs"]
    assert entries[1]["105"]["logprob"] == pytest.approx(local_log_probs(ids)[0, 105].item(), abs=1e-5)


def test_a_prompt_as_long_as_the_context_is_scored_in_pieces(url, local_log_probs):
    ids = [3 + i % 90 for i in range(400)]
    rows = complete(url, prompt=ids, prompt_logprobs=2)["choices"][0]["prompt_logprobs"]
    expected = local_log_probs(ids).gather(-1, torch.tensor(ids[1:]).unsqueeze(-1)).squeeze(-1)
    got = torch.tensor([row[str(token)]["logprob"] for row, token in zip(rows[1:], ids[1:], strict=True)])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert all(math.isfinite(entry["logprob"]) for row in rows[1:] for entry in row.values())


def test_clients_that_ask_at_once_have_each_their_own_numbers(url, local_log_probs):
    """One of them asks for what gives NaN, one for what is no id: the others do not notice."""
    prompts = [[[5 + i] * (3 + i % 5), [30 + i, 7, 8, 9]] for i in range(12)]
    prompts[3], prompts[7] = [[5, NOT_A_NUMBER, 6]], [[5, VOCAB]]

    def ask(i: int) -> requests.Response:
        body = {"prompt": prompts[i], "prompt_logprobs": 0, "temperature": 1 + i / 10}
        return requests.post(f"{url}/v1/completions", json=body, timeout=60)

    with ThreadPoolExecutor(len(prompts)) as executor:
        answers = list(executor.map(ask, range(len(prompts))))
    assert [answers[i].status_code for i in (3, 7)] == [500, 400]
    for i in set(range(len(prompts))) - {3, 7}:
        for choice, ids in zip(answers[i].json()["choices"], prompts[i], strict=True):
            positions = zip(choice["prompt_logprobs"][1:], local_log_probs(ids, 1 + i / 10), ids[1:], strict=True)
            for entries, row, token in positions:
                assert entries[str(token)]["logprob"] == pytest.approx(row[token].item(), abs=1e-5)
