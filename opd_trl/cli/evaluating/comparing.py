"""Compare a result with others on the same problems, in pairs."""

from pathlib import Path
from typing import Any

from ...suites.protocol import differences
from ...suites.results import Metric
from ...suites.store import read_json, read_samples


# What two runs must have in common; models, adapters, contexts and engines are what is compared.
SHARED = ("suite", "protocol", "data", "rules", "leak_rules")


def compare(folder: Path, identity: dict[str, Any], metrics: list[Metric], suite: Any) -> dict[str, Any]:
    """Differences of this evaluation from the one in `folder`.

    Raises:
        ValueError: there is no finished evaluation, or one of another protocol or of other problems; what differs is
            said.
    """
    check_comparable(folder, identity)
    theirs = {metric.name: metric for metric in suite.metrics(read_samples(folder / "samples.jsonl"))}
    found = {}
    for metric in metrics:
        if metric.values.keys() != theirs[metric.name].values.keys():
            raise ValueError(f"--compare {folder}: samples of other problems. Run it to its end first.")
        found[metric.name] = metric.difference(theirs[metric.name])
    there = read_json(folder / "run.json")
    return {"folder": str(folder), "who": {name: there.get(name) for name in ("model", "adapter", "context")}, **found}


def check_comparable(folder: Path, identity: dict[str, Any]) -> None:
    """Raise ValueError unless a folder holds a finished evaluation that can be compared; before anything is run."""
    if not (folder / "result.json").is_file():
        raise ValueError(f"--compare {folder} has no result.json. Give the --output of an evaluation that has ended.")
    there = read_json(folder / "run.json")
    changed = differences({k: there.get(k) for k in SHARED}, {k: identity.get(k) for k in SHARED})
    if changed:
        raise ValueError(f"--compare {folder} is no comparison: {'; '.join(changed)}. Evaluate both alike.")
