"""Every request that the server refuses: the status, OpenAI's shape, and a text that says what to do."""

import json
import math

import pytest
import requests

from tests.serving.conftest import NOT_A_NUMBER
from tests.serving.server import serve


KEY = "correct horse"
GOOD = {"prompt": [5, 6, 7], "prompt_logprobs": 2}


def refused(response: requests.Response, status: int) -> str:
    """The message of a refusal in OpenAI's shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "code"}
    assert error["code"] == status
    return error["message"]


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"prompt": []}, 400, "prompt must be a text, a list of token ids, or a list of those, none empty; got []."),
        ({"prompt": ""}, 400, "prompt[0] is empty. A sequence has at least one token id."),
        ({"prompt": [[5, 6], []]}, 400, "prompt[1] is empty."),
        ({"prompt": [5, "a"]}, 400, "prompt must be a text, a list of token ids"),
        ({"prompt": [5, True]}, 400, "prompt must be a text, a list of token ids"),
        ({"prompt": [[5, 6], [5, 1.5]]}, 400, "prompt must be a text, a list of token ids"),
        ({"prompt": {"a": 1}}, 400, "prompt must be a text, a list of token ids"),
        ({"prompt": [5, 110]}, 400, "prompt[0] holds the id 110, and the model's ids go from 0 to 109."),
        ({"prompt": [5, -1]}, 400, "prompt[0] holds the id -1, and the model's ids go from 0 to 109."),
        ({"prompt": [5, 10**30]}, 400, "and the model's ids go from 0 to 109. Student and teacher must share"),
        ({"prompt": [[5] * 400, [5] * 401]}, 400, "prompt[1] has 401 tokens, at most 400 fit (max_model_len)."),
        ({"prompt": [[5, 6]] * 7}, 413, "prompt holds 7 sequences, at most 6 are taken at a time. Send several"),
        ({"prompt_logprobs": 31}, 400, "prompt_logprobs is 31, expected 0 to 30. Ask for fewer, or start the server"),
        ({"prompt_logprobs": 31}, 400, "with a larger --max-logprobs"),
        ({"prompt_logprobs": -1}, 400, "prompt_logprobs is -1, expected 0 to 30."),
        ({"prompt_logprobs": None}, 400, "prompt_logprobs is missing: how many of the most probable ids to score"),
        ({"prompt_logprobs": "5"}, 400, "prompt_logprobs: Input should be a valid integer, got '5'."),
        ({"max_tokens": 2}, 400, "max_tokens is 2, expected 0 or 1: this server scores prompts, it does not generate"),
        ({"n": 2}, 400, "n: Input should be less than or equal to 1, got 2."),
        ({"stream": True}, 400, "stream is true, and a scored prompt has nothing to stream."),
        ({"temperature": 0}, 400, "temperature must be from 0.001 to 1000.0, got 0.0."),
        ({"temperature": -1.5}, 400, "temperature must be from 0.001 to 1000.0, got -1.5."),
        ({"temperature": 1e400}, 400, "temperature"),
        ({"temperature": 1e-300}, 400, "temperature must be from 0.001 to 1000.0, got 1e-300."),
        ({"temperature": 5e-324}, 400, "temperature must be from 0.001 to 1000.0, got 5e-324."),
        ({"temperature": -0.0}, 400, "temperature must be from 0.001 to 1000.0, got -0.0."),
        ({"temperature": math.nan}, 400, "temperature must be from 0.001 to 1000.0, got nan."),
        ({"temperature": -math.inf}, 400, "temperature must be from 0.001 to 1000.0, got -inf."),
        ({"temperature": 10**400}, 400, "temperature"),
        ({"temperature": True}, 400, "temperature: Input should be a valid number, got True."),
        ({"max_tokens": 10**400}, 400, "...0000000000000000000, expected 0 or 1: this server"),
        ({"max_tokens": True}, 400, "max_tokens: Input should be a valid integer, got True."),
        ({"prompt_logprobs": -(10**400)}, 400, "...0000000000000000000, expected 0 to 30"),
        ({"prompt_logprobs": True}, 400, "prompt_logprobs: Input should be a valid integer, got True."),
        ({"prompt_logprobs": 1e300}, 400, "prompt_logprobs: Input should be a valid integer, got 1e+300."),
        ({"prompt": [5, 10**400]}, 400, "...0000000000000000000, and the model's ids go from 0 to 109."),
        ({"prompt": [5, 2**31]}, 400, "prompt[0] holds the id 2147483648, and the model's ids go from 0 to 109."),
        ({"prompt_logprob_ids": [[None, [1], [-(2**63)]]]}, 400, "prompt_logprob_ids[0] holds the id -92233720368547"),
        ({"prompt_logprob_ids": [[None, [1], [True]]]}, 400, "prompt_logprob_ids[0][2][0]: Input should be a valid"),
        ({"prompt": "\ud800"}, 400, "the body: Invalid JSON"),
        ({"prompt_logprob_ids": []}, 400, "prompt_logprob_ids has 0 entries, expected 1: one per prompt."),
        (
            {"prompt_logprob_ids": [[None, [1]]]},
            400,
            "prompt_logprob_ids[0] has 2 entries for 3 tokens. Give one list",
        ),
        ({"prompt_logprob_ids": [[None, [1], [110]]]}, 400, "prompt_logprob_ids[0] holds the id 110"),
        ({"prompt_logprob_ids": [[[500], [-1], [5]]]}, 400, "prompt_logprob_ids[0] holds the id -1"),
        ({"prompt_logprob_ids": [[None, [1], [1] * 31]]}, 400, "prompt_logprob_ids[0] asks for 31 ids at a position"),
        ({"prompt_logprob_ids": [[None, [1], ["a"]]]}, 400, "prompt_logprob_ids[0][2][0]: Input should be a valid"),
        ({"model": "gpt-5"}, 404, "this server serves 'teacher', not 'gpt-5'. Leave `model` out, or give that name."),
        ({"prompt": [5, NOT_A_NUMBER, 6]}, 500, "the scores of prompt[0] hold NaN or infinity. Start the server with"),
    ],
)
@pytest.mark.attack("server", "numbers that are none, too large or too small, wherever one is read", "HTTP 400")
def test_a_completion_that_cannot_be_scored_is_refused_with_the_remedy(url, body, status, text):
    response = requests.post(f"{url}/v1/completions", data=json.dumps(GOOD | body))
    assert text in refused(response, status)


@pytest.mark.parametrize(
    ("sequences", "num_scored", "status", "text"),
    [
        ([], [], 400, "sequences is empty. Give at least one sequence of token ids."),
        ([[5, 6], []], [1, 1], 400, "sequences[1] is empty."),
        ([[5, 6]], [2], 400, "num_scored[0] is 2, expected 1 to 1: sequences[0] has 2 tokens"),
        ([[5, 6], [5, 6, 7]], [1, 0], 400, "num_scored[1] is 0, expected 1 to 2: sequences[1] has 3 tokens"),
        ([[5, 6]], [-1], 400, "num_scored[0] is -1"),
        ([[5]], [1], 400, "num_scored[0] is 1"),
        ([[5, 6]], [1, 1], 400, "num_scored has 2 entries for 1 sequences. Give one each."),
        ([[5, 110]], [1], 400, "sequences[0] holds the id 110, and the model's ids go from 0 to 109."),
        ([[5] * 401], [1], 400, "sequences[0] has 401 tokens, at most 400 fit"),
        ([[5, 6]] * 7, [1] * 7, 413, "sequences holds 7 sequences, at most 6 are taken"),
        ([[5, "6"]], [1], 400, "sequences[0][1]: Input should be a valid integer, got '6'."),
        ("abc", [1], 400, "sequences: Input should be a valid array, got 'abc'."),
        ([[5, 6]], None, 400, "num_scored: Input should be a valid array, got None."),
        ([[5, 6], [7, NOT_A_NUMBER, 8], [9, 9]], [1, 1, 1], 500, "the scores of sequences[1] hold NaN or infinity."),
    ],
)
def test_hidden_states_that_cannot_be_given_are_refused_with_the_remedy(url, sequences, num_scored, status, text):
    response = requests.post(f"{url}/v1/hidden_states", json={"sequences": sequences, "num_scored": num_scored})
    assert text in refused(response, status)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 500_000, b"[1]", b"null", b'{"prompt": 1' + b"0" * 100_000 + b"}"]
)
def test_what_is_no_json_object_is_refused(url, content):
    for path in ("completions", "hidden_states"):
        refused(requests.post(f"{url}/v1/{path}", data=content), 400)


def test_a_missing_field_is_named(url):
    assert refused(requests.post(f"{url}/v1/hidden_states", json={"sequences": [[1]]}), 400).startswith("num_scored:")
    assert refused(requests.post(f"{url}/v1/completions", json={}), 400).startswith("prompt:")


def test_a_body_above_the_limit_is_refused(url):
    message = refused(requests.post(f"{url}/v1/completions", data=b"x" * (2**20 + 1)), 413)
    assert message.startswith("a request has at most 1048576 bytes here, this one has 1048577.")
    assert "--max-request-mib" in message


def test_a_body_of_the_largest_size_is_taken(url):
    assert requests.post(f"{url}/v1/completions", data=json.dumps(GOOD).encode().ljust(2**20)).status_code == 200


def test_an_unknown_path_names_the_endpoints(url):
    assert "POST /v1/hidden_states" in refused(requests.get(f"{url}/v1/chat/completions"), 404)
    assert "POST /v1/hidden_states" in refused(requests.get(f"{url}/v1/completions"), 405)
    for path in ("docs", "redoc", "openapi.json"):
        refused(requests.get(f"{url}/{path}"), 404)


def test_a_model_that_a_request_names_is_not_loaded(url, student_path):
    """A path that exists and could be loaded."""
    body = {"model": student_path, "sequences": [[5, 6]], "num_scored": [1]}
    assert "this server serves 'teacher'" in refused(requests.post(f"{url}/v1/hidden_states", json=body), 404)
    assert requests.get(f"{url}/v1/models").json()["data"][0]["id"] == "teacher"


def test_the_server_goes_on_after_refusals(url):
    refused(requests.post(f"{url}/v1/completions", json=GOOD | {"prompt": [NOT_A_NUMBER, 5]}), 500)
    assert requests.post(f"{url}/v1/completions", json=GOOD).status_code == 200


@pytest.fixture(scope="module")
def keyed_url(model_path):
    with serve(model_path, "--dtype", "bfloat16", env={"OPD_TRL_API_KEY": KEY}) as url:
        yield url


@pytest.mark.parametrize("path", ["v1/models", "v1/vocabulary", "v1/head", "v1/hidden_states", "v1/completions", "x"])
def test_without_the_key_nothing_but_health_answers(keyed_url, path):
    for headers in ({}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}):
        message = refused(requests.get(f"{keyed_url}/{path}", headers=headers), 401)
        assert message.startswith("this server needs a key. Send the header 'Authorization: Bearer KEY'")
    for wrong in ("wrong", KEY[:-1], KEY + "x", "", "\xe9"):
        headers = {"Authorization": f"Bearer {wrong}".encode("latin-1")}
        assert "OPD_TRL_API_KEY" in refused(requests.get(f"{keyed_url}/{path}", headers=headers), 401)
    assert requests.get(f"{keyed_url}/health").status_code == 200


def test_with_the_key_it_answers(keyed_url, model_path):
    headers = {"Authorization": f"Bearer {KEY}"}
    assert requests.get(f"{keyed_url}/v1/models", headers=headers).json()["data"][0]["id"] == model_path
    assert requests.post(f"{keyed_url}/v1/completions", headers=headers, json=GOOD).status_code == 200


def test_a_large_body_without_the_key_is_told_so_instead_of_being_cut_off(keyed_url):
    for _ in range(3):
        refused(requests.post(f"{keyed_url}/v1/completions", data=b"x" * 2**24), 401)


def test_hidden_states_and_head_come_in_the_models_dtype(keyed_url):
    import torch
    from safetensors.torch import load

    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"sequences": [[5, 6]], "num_scored": [1]}
    states = load(requests.post(f"{keyed_url}/v1/hidden_states", headers=headers, json=body).content)
    assert states["hidden_states"].dtype == torch.bfloat16
    assert load(requests.get(f"{keyed_url}/v1/head", headers=headers).content)["weight"].dtype == torch.bfloat16
