"""Lines of cells, made up; and what a script has written on its page."""

from pathlib import Path

from lines import marks_of


CONDITIONS = {"commit": "abc", "machine": "m", "date": "2026-01-01", "torch": "2", "trl": "1"}


def written(page, script):
    begin, end = marks_of(script)
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    return text.split(begin)[1].split(end)[0].strip()


def line(rule="json", objective="jsd", seed=0, **content):
    verdicts = {"greedy": [1, 1, 0, 1], "sampled": [1, 0, 0, 1], "elsewhere": [0, 0, 1]}
    return {"rule": rule, "objective": objective, "seed": seed, **verdicts, **content}


def trained(objective, seed=0, tokens=4000, **content):
    return line(
        objective=objective, seed=seed, **{"steps": 20, "completion_tokens": tokens, "retention": 3.5, **content}
    )


def evaluated(rule, objective, seed, tasks=(1, 0, 1), nats=(0.8, 1.0), protocol="p"):
    figures = {"tasks": list(tasks), "nats_per_byte": list(nats), "protocol_hash": protocol, "data": {"tasks": 3}}
    return {"rule": rule, "objective": objective, "seed": seed, **figures}
