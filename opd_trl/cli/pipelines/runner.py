"""Which stages run, and running them: every stage is recorded before it starts and after it ends."""

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from ...credentials import as_json as shown
from ...credentials import without_secrets
from ...durable import atomically
from ...models.provenance import versions
from ...scripts.launching import CONFIG, SEVERAL
from ...scripts.processes import Ended, all_cores
from .child import run_child
from .document import Pipeline, Stage
from .record import Digest, Hasher, difference, sha256, write_record


LOGS = "logs"
CONFIGS = "configs"
DONE, FAILED, KILLED, RUNNING = "done", "failed", "killed", "running"


@dataclass
class Outcome:
    """What became of a stage in this run: `ran`, `skipped`, `failed`, `killed`, `not run`, and why."""

    stage: Stage
    state: str
    reason: str = ""
    seconds: float | None = None


@dataclass
class Run:
    """A run of a pipeline: decides which stages run, runs them, and keeps the record.

    `lines` are the checked arguments of each stage, `record` is what earlier runs have written down, and `say` prints
    one line for the user.
    """

    pipeline: Pipeline
    lines: dict[str, list[str]]
    record: dict[str, Any]
    say: Callable[[str], None] = print
    hasher: Hasher = field(default_factory=Hasher)

    def reason(self, stage: Stage) -> str | None:
        """Why a stage must run; None if its command, inputs and outputs are what they were when it was done."""
        entry = self.record.get(stage.name)
        if entry is None:
            return "has not run"
        if entry["status"] != DONE:
            return {FAILED: f"failed with status {entry['exit_status']}"}.get(entry["status"], "was ended")
        if changed := self.changed(stage, entry):
            return changed
        outputs = self.digests(stage.outputs)
        return differences("output", entry["outputs"], outputs)

    def changed(self, stage: Stage, entry: dict[str, Any]) -> str | None:
        """How a stage differs from the one that was recorded: its command, arguments, recipe or inputs."""
        if entry["run"] != stage.command.name:
            return f"run was {entry['run']}"
        before, now = entry["arguments"], shown(as_json(stage.args))
        if entry["arguments_sha256"] != sha256(as_json(stage.args)):
            names = [key for key in {**before, **now} if before.get(key) != now.get(key)]
            changes = "; ".join(f"{key}: {before.get(key)!r} is {now.get(key)!r} now" for key in names)
            return changes or "an argument that is not shown is another"
        if entry["config_sha256"] != sha256(as_json(stage.config)):
            return "the recipe of its config has changed"
        if entry["output_paths"] != list(stage.outputs):
            return "its outputs are others"
        return differences("input", entry["inputs"], self.digests(stage.inputs))

    def digests(self, paths: tuple[str, ...]) -> dict[str, Digest | None]:
        """Path -> the hash of the file or folder, None where there is none."""
        return {path: self.hasher.digest(Path(path)) for path in paths}

    def command(self, stage: Stage) -> list[str]:
        """The whole command line of a stage."""
        config = ["--config", str(self.pipeline.folder / CONFIGS / f"{stage.name}.yaml")] if stage.config else []
        return [*stage.command.argv, *config, *self.lines[stage.name]]

    def plan(self, *, first: int, last: int, forced: bool) -> list[tuple[Stage, str | None]]:
        """Return the stages from `first` to `last`, each with the reason for which it runs, or None.

        Everything after the first stage that runs, runs. `forced`: the first one runs in any case.
        """
        planned: list[tuple[Stage, str | None]] = []
        cause = None
        for index, stage in enumerate(self.pipeline.stages[: last + 1]):
            if index < first:
                continue
            reason = f"comes after {cause}" if cause else self.reason(stage) or ("asked for" if forced else None)
            cause = cause or (stage.name if reason else None)
            planned.append((stage, reason))
        return planned

    def check_first(self, first: int) -> None:
        """Raise ValueError where a stage before the first one is not done, or its outputs are gone."""
        for stage in self.pipeline.stages[:first]:
            entry = self.record.get(stage.name)
            gone = [path for path in stage.outputs if not Path(path).exists()]
            done = entry is not None and entry["status"] == DONE
            if gone or not done:
                what = f"its output {gone[0]} is missing" if done else "it has not been done"
                raise ValueError(
                    f"--from cannot start behind stage {stage.name}: {what}. Start with --from {stage.name}."
                )

    def check_free(self, planned: list[tuple[Stage, str | None]]) -> None:
        """Raise ValueError where a stage would write over what is there and no stage of this pipeline has written."""
        known = {path for entry in self.record.values() for path in entry["output_paths"]}
        for stage, reason in planned:
            for path in stage.outputs:
                if reason and path not in known and Path(path).exists():
                    raise ValueError(
                        f"stage {stage.name} would write to {path}, which is there and was not written by this "
                        "pipeline. Move it away, or name another output."
                    )

    def go_on(self, stage: Stage) -> tuple[list[str], str | None]:
        """Make room for a stage; return the flags with which it goes on from an earlier attempt, and from where.

        Only an attempt that was ended or failed, at the same work, is gone on from. Anything else that lies in the
        place of the outputs is moved aside, never removed, and so are the files that the command puts beside them.
        """
        entry = self.record.get(stage.name)
        same = entry is not None and entry["status"] != DONE and self.changed(stage, entry) is None
        if same and stage.command.goes_on:
            if not stage.command.training or "resume_from_checkpoint" in stage.values:
                return [], "what it has written"
            checkpoint = last_checkpoint(stage)
            return (["--resume_from_checkpoint", checkpoint], checkpoint) if checkpoint else ([], None)
        for output in map(Path, (*stage.outputs, *stage.beside)):
            if output.exists():
                aside = output.with_name(f"{output.name}.before-{datetime.now():%Y%m%d-%H%M%S}")
                output.rename(aside)
                self.say(f"  {output} of an earlier run is kept as {aside}")
        return [], None

    def run_stage(self, stage: Stage, lock: int | None) -> Outcome:
        """Run one stage and record it; raises Ended, recorded too, where the pipeline was told to end."""
        inputs = self.digests(stage.inputs)
        if missing := [path for path, digest in inputs.items() if digest is None]:
            return Outcome(stage, FAILED, f"not started: its input {missing[0]} is missing")
        earlier = self.record.get(stage.name, {})
        flags, origin = self.go_on(stage)
        if origin:
            self.say(f"  goes on from {origin}")
        self.write_config(stage)
        argv, log = [*self.command(stage), *flags], self.pipeline.folder / LOGS / f"{stage.name}.log"
        start = datetime.now().astimezone()
        entry = {
            "run": stage.command.name,
            "command": without_secrets(argv),
            "arguments": shown(as_json(stage.args)),
            "arguments_sha256": sha256(as_json(stage.args)),
            "config": str(stage.recipe.path) if stage.recipe else None,
            "config_sha256": sha256(as_json(stage.config)),
            "inputs": inputs,
            "output_paths": list(stage.outputs),
            "outputs": {},
            "status": RUNNING,
            "exit_status": None,
            "start": start.isoformat(timespec="seconds"),
            "went_on_from": origin,
            "log": str(log),
            "versions": versions(),
            "attempts": earlier.get("attempts", []) if origin else [],
        }
        self.record[stage.name] = entry
        self.save()
        begin, status = time.monotonic(), None
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as file:
                file.write(f"=== {entry['start']} {' '.join(without_secrets(argv))}\n")
            status = run_child(argv, log, lock, all_cores() if alone(stage) else {})
        finally:
            seconds = round(time.monotonic() - begin, 3)
            entry |= {"seconds": seconds, "end": datetime.now().astimezone().isoformat(timespec="seconds")}
            entry |= {"exit_status": status, "status": state_of(status)}
            entry["attempts"].append({key: entry[key] for key in ("start", "end", "seconds", "exit_status")})
            self.save()
        if status == 0:
            return self.finish(stage, entry, seconds)
        return Outcome(stage, entry["status"], f"{in_words(status)}; its log: {log}", seconds)

    def finish(self, stage: Stage, entry: dict[str, Any], seconds: float) -> Outcome:
        """Record what a stage has written; a stage that wrote less than it declares has failed."""
        outputs = self.digests(stage.outputs)
        missing = [path for path, digest in outputs.items() if digest is None]
        entry |= {"outputs": outputs, "status": FAILED if missing else DONE}
        self.save()
        if missing:
            return Outcome(stage, FAILED, f"ended well without writing {missing[0]}; its log: {entry['log']}", seconds)
        return Outcome(stage, "ran", "", seconds)

    def write_config(self, stage: Stage) -> None:
        """Write what the stage reads from a file: its recipe with all that it extends, and tables."""
        if stage.config:
            path = self.pipeline.folder / CONFIGS / f"{stage.name}.yaml"
            with atomically(path) as file:
                yaml.safe_dump(stage.config, file, sort_keys=False, allow_unicode=True)

    def save(self) -> None:
        """Write the record as it is now."""
        write_record(self.pipeline.folder, self.pipeline.path, self.record)


def execute(run: Run, planned: list[tuple[Stage, str | None]], lock: int | None) -> tuple[list[Outcome], int]:
    """Run what is planned until a stage fails; return what became of each, and the exit status."""
    outcomes: list[Outcome] = []
    status = 0
    for number, (stage, reason) in enumerate(planned, 1):
        if status:
            outcomes.append(Outcome(stage, "not run"))
            continue
        head = f"[{number}/{len(planned)}] {stage.name}: {stage.command.name}"
        if reason is None:
            run.say(f"{head}: skipped, command, inputs and outputs are unchanged")
            outcomes.append(Outcome(stage, "skipped"))
            continue
        run.say(f"{head}: runs, {reason}")
        try:
            outcome = run.run_stage(stage, lock)
        except Ended as ended:
            outcome, status = Outcome(stage, KILLED, str(ended)), 128 + ended.number
        status = status or (0 if outcome.state == "ran" else 1)
        outcomes.append(outcome)
    return outcomes, status


def alone(stage: Stage) -> bool:
    """Is a stage the training of one process on a CPU? TRL's own commands would give it one core."""
    several = {"config_file", CONFIG, *SEVERAL} & stage.values.keys() or stage.values.get("num_processes", 1) != 1
    return stage.command.training and stage.values.get("use_cpu") is True and not several


def state_of(status: int | None) -> str:
    """The state of a stage by its exit status; with 0 it still runs until its outputs are recorded."""
    return RUNNING if status == 0 else KILLED if status is None or status > 128 else FAILED


def in_words(status: int) -> str:
    """How a stage ended, from its exit status.

    >>> in_words(1), in_words(137)
    ('failed with status 1', 'was ended by SIGKILL')
    """
    names = {number.value: number.name for number in signal.Signals}
    return f"was ended by {names[status - 128]}" if status - 128 in names else f"failed with status {status}"


def differences(what: str, before: dict[str, Digest | None], now: dict[str, Digest | None]) -> str | None:
    """Say which path is the first that is not what it was, and how it differs; None where all are the same."""
    for path in {**before, **now}:
        if found := difference(before.get(path), now.get(path)):
            return f"{what} {path} {found}"
    return None


def last_checkpoint(stage: Stage) -> str | None:
    """The folder of the last whole checkpoint of a training stage, or None."""
    from ...scripts.checkpoints import checkpoint_of

    folder = str(stage.values["output_dir"])
    try:
        return checkpoint_of(SimpleNamespace(resume_from_checkpoint="true", output_dir=folder))
    except ValueError:
        return None


def as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Values as they come back from a JSON file."""
    return json.loads(json.dumps(values, default=str))
