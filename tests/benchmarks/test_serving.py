"""The load test of a served teacher."""

import json

import serving
from serving import Round, line_of


def test_the_line_of_a_load_holds_medians_over_its_rounds_and_all_refusals():
    rounds = [
        Round(seconds=[0.010] * 10, refused=1, elapsed=0.1, direct=0.05, cpu=0.04, direct_cpu=0.04),
        Round(seconds=[0.020] * 10, refused=2, elapsed=0.2, direct=0.05, cpu=0.02, direct_cpu=0.04),
        Round(seconds=[0.030] * 10, refused=0, elapsed=0.4, direct=0.05, cpu=0.08, direct_cpu=0.04),
    ]
    assert line_of(8, rounds, 100) == {
        "clients": "8",
        "served, tokens/s": "5000",
        "plain forward, tokens/s": "20000",
        "ratio": "0.25",
        "ratio, CPU": "1.00",
        "latency, median ms": "20.0",
        "95 %, ms": "30.0",
        "refused": "3 of 30",
    }


def test_clients_are_measured_against_a_forward_in_this_process(tmp_path, capsys, monkeypatch):
    """More clients than a server of the default takes are told so, and have their answers in the end."""
    for name in serving.QUIET:
        monkeypatch.setenv(name, "1")  # what the script sets is taken back
    monkeypatch.setattr(serving, "PAUSE", 0.1)
    monkeypatch.setattr(serving.torch, "set_num_threads", lambda _: None)
    path = tmp_path / "serving.json"
    sizes = ["--requests", "36", "--rounds", "1", "--tokens", "8", "--json", str(path)]
    serving.main(["--clients", "1", "32", "36", *sizes])
    result = json.loads(path.read_text())
    refused = [line["refused"] for line in result["lines"]]
    assert refused[:2] == ["0 of 36", "0 of 36"]
    assert refused[2].endswith(" of 36")
    assert result["overhead_ms"] == sorted(result["overhead_ms"])
    assert "| 32 | " in capsys.readouterr().out
