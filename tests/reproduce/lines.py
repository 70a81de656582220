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
    return Settings({}, {}, {}, {}, {x.name: x for x in arms}, {"first": claim(**fields)})


def run(name: str, seed: int, accuracy: float, **last) -> dict:
    after = {"accuracy": accuracy, "greedy": accuracy, "length": 20.0, "cut_off": 0.0, "repetition": 0.1}
    curves = {"step": [1, 2]} | {figure: [value, value] for figure, value in last.items()}
    result = {"after": after, "last": last, "curves": curves, "warnings": {"spike": 3 + seed} if name == "bad" else {}}
    return {"kind": "arm", "name": name, "seed": seed, "result": result}


def pick(seed: int) -> dict:
    after = {"letters": [0.2, 0.3, 0.4], "mass": 0.26, "teacher_mass": 0.7, "stationary_mass": 0.2575}
    curves = {"step": [1, 2], "support/student_mass": [0.7, 0.26]}
    last = {"support/student_mass": 0.26}
    return {"kind": "arm", "name": "pick", "seed": seed, "result": {"after": after, "last": last, "curves": curves}}


def reference(model: str, seed: int, accuracy: float) -> dict:
    head = {"kind": "reference", "model": model, "prompts": "solve", "context": None, "seed": seed}
    return head | {"result": {"accuracy": accuracy, "greedy": accuracy}}


def forecast(name: str, seed: int, verdict: str, *doubts: str) -> dict:
    findings = [{"name": x, "verdict": verdict, "figure": "", "value": 0.25 + seed} for x in doubts]
    findings.append({"name": "EOS", "verdict": "ok", "figure": "", "value": None})
    return {"kind": "forecast", "name": name, "seed": seed, "result": {"verdict": verdict, "findings": findings}}


def lines() -> list[dict]:
    """The good arm goes from 0.5 to 0.8, 0.8 and 0.65, the bad one to 0.1, 0.2 and 0.3; the teacher has 0.9."""
    found = [reference(model, seed, value) for seed in range(3) for model, value in (("weak", 0.5), ("own", 0.9))]
    for seed, (good, bad) in enumerate([(0.8, 0.1), (0.8, 0.2), (0.65, 0.3)]):
        found += [run("good", seed, good, entropy=1.0 + seed), run("bad", seed, bad, entropy=2.0 - seed), pick(seed)]
        found.append(forecast("bad", seed, "stop" if seed else "fix", "Top-5 overlap"))
    return [*found, forecast("good", 0, "ok"), forecast("good", 1, "fix", "Top-20 overlap", "gradient")]
