"""Lines of results, made up: three arms of one claim, three seeds."""

from opd_trl.reproduce.settings import Arm, Claim, Settings


def arm(name: str, **fields) -> Arm:
    defaults = {"student": "weak", "teacher": "own", "prompts": "solve", "label": name.title()}
    return Arm(name=name, **defaults | fields)


def claim(**fields) -> Claim:
    defaults = {
        "name": "first",
        "title": "A claim",
        "text": "What is claimed.",
        "arms": ("good", "bad", "pick"),
        "against": "bad",
        "figures": ("entropy",),
        "checks": (("good", "bad"), ("bad", "good"), ("good", "good:before"), ("good:entropy", "bad:entropy")),
    }
    return Claim(**defaults | fields)


def settings(**fields) -> Settings:
    arms = [arm("good"), arm("bad"), arm("pick", prompts="pick", outcome="pick", student="own")]
    claims = {"first": claim(**fields)}
    options = {"rates": {"values": [1e-3, 4e-3], "seeds": [100]}, "trial": {"steps": [10, 20], "prompts": 64}}
    return Settings({}, {}, {}, {}, {x.name: x for x in arms}, claims, **options)


def score(accuracy: float) -> dict:
    """So many of forty problems are right, four samples each."""
    return {"accuracy": accuracy, "right": ("4" * round(40 * accuracy)).ljust(40, "0"), "greedy": accuracy}


def run(name: str, seed: int, accuracy: float, **last) -> dict:
    after = score(accuracy) | {"length": 20.0, "cut_off": 0.0, "repetition": 0.1}
    curves = {"step": [1, 2]} | {figure: [value, value] for figure, value in last.items()}
    bad = name.startswith("bad")
    result = {"after": after, "last": last, "curves": curves, "warnings": {"spike": 3 + seed} if bad else {}}
    result["foretold"] = told("harms" if bad else "works")
    return {"kind": "arm", "name": name, "seed": seed, "result": result}


def told(word: str) -> dict:
    """Unclear after 10 steps, this word after 20; the divergence alone has risen in both, and falls again after 20."""
    rose, fell = {"divergence": [0.5, 0.2, 0.1, 0.3]}, {"divergence": [0.5, -0.2, -0.3, -0.1]}
    changes = {"changes": {"10": rose, "20": rose}, "second_half": {"10": rose, "20": fell}}
    return {"words": {"10": "unclear", "20": word}} | changes


def rate(name: str, value: float, accuracy: float, word: str) -> dict:
    line = run(f"{name}@{value:g}", 100, accuracy)
    line["result"]["foretold"] = told(word)
    return line | {"kind": "rate"}


def pick(seed: int) -> dict:
    after = {"letters": [0.2, 0.3, 0.4], "mass": 0.26, "teacher_mass": 0.7, "stationary_mass": 0.2575}
    curves = {"step": [1, 2], "support/student_mass": [0.7, 0.26]}
    last = {"support/student_mass": 0.26}
    return {"kind": "arm", "name": "pick", "seed": seed, "result": {"after": after, "last": last, "curves": curves}}


def reference(model: str, seed: int, accuracy: float) -> dict:
    head = {"kind": "reference", "model": model, "prompts": "solve", "context": None, "seed": seed}
    return head | {"result": score(accuracy)}


def forecast(name: str, seed: int, verdict: str, *doubts: str) -> dict:
    findings = [{"name": x, "verdict": verdict, "figure": "", "value": 0.25 + seed} for x in doubts]
    findings.append({"name": "EOS", "verdict": "ok", "figure": "", "value": None})
    return {"kind": "forecast", "name": name, "seed": seed, "result": {"verdict": verdict, "findings": findings}}


def lines() -> list[dict]:
    """The good arm goes from 0.5 to 0.8, 0.8 and 0.65, the bad one to 0.1, 0.2 and 0.3; the teacher has 0.9.

    On the seed of the choice the good one is best at 1e-3, where it helps; at 4e-3 it hurts, and the trial said works.
    """
    found = [reference(model, seed, value) for seed in range(3) for model, value in (("weak", 0.5), ("own", 0.9))]
    for seed, (good, bad) in enumerate([(0.8, 0.1), (0.8, 0.2), (0.65, 0.3)]):
        found += [run("good@0.001", seed, good, entropy=1.0 + seed), pick(seed)]
        found.append(run("bad@0.004", seed, bad, entropy=2.0 - seed))
        found.append(forecast("bad", seed, "stop" if seed else "fix", "Top-5 overlap"))
    found += [reference("weak", 100, 0.5), reference("own", 100, 0.9)]
    found += [rate("good", 1e-3, 0.9, "works"), rate("good", 4e-3, 0.1, "works")]
    found += [rate("bad", 1e-3, 0.1, "harms"), rate("bad", 4e-3, 0.2, "harms")]
    return [*found, forecast("good", 0, "ok"), forecast("good", 1, "fix", "Top-20 overlap", "gradient")]
