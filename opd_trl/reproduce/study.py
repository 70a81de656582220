"""A study: jobs in processes of their own, their results in one file; it goes on where it was stopped."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from ..durable import append_lines, cut_unfinished_line
from ..foreign import parse_json
from ..models.provenance import conditions
from ..scripts.processes import owned
from . import rates
from .settings import MAKERS, Settings, sha


Line = dict[str, Any]
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Job:
    """One thing to do in a process of its own: train a model, measure one, run a pre-flight or an arm.

    Attributes:
        kind: `model`, `reference`, `forecast`, `arm`; `rate`: an arm on a seed on which its rate is chosen.
        name: of the maker, the reference or the arm.
        seed: of the study.
        digest: of the settings that it depends on.
        needs: makers that must have run.
        subject: of a reference: model, prompts, context.
    """

    kind: str
    name: str
    seed: int
    digest: str
    needs: tuple[str, ...] = ()
    subject: tuple[str, str, str | None] | None = None

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What the job's line in `results.jsonl` is found by."""
        return self.kind, self.name, self.seed, self.digest


def all_jobs(settings: Settings, seeds: Sequence[int], arms: Sequence[str], lines: Sequence[Line] = ()) -> list[Job]:
    """Jobs of these arms with all that they need, seed by seed.

    Where rates are tried, an arm is among those of the reported seeds once its rate is chosen, from the `lines` that
    there are: the jobs are asked for again when the others have run.
    """
    named = {name: rates.to_try(settings, settings.arms[name]) for name in arms}
    of_choice = [name for names in named.values() for name in names]
    jobs = of_seeds(settings, settings.rates["seeds"], of_choice, ("rate",)) if of_choice else []
    best = rates.chosen(settings, matching(lines, jobs))
    of_report = [rates.named(name, best.get(name)) for name, names in named.items() if name in best or not names]
    return jobs + of_seeds(settings, seeds, of_report, ("forecast", "arm"))


def of_seeds(settings: Settings, seeds: Sequence[int], names: Sequence[str], kinds: Sequence[str]) -> list[Job]:
    """Jobs of some kinds on some seeds, of arms at rates, and before each seed's its models and references."""
    maker_of = {model: name for name, (made, _) in MAKERS.items() for model in made}
    arms = [rates.arm_of(settings, name) for name in names]
    wanted = {maker_of[model] for arm in arms for model in arm.models}
    wanted |= {need for name in wanted for need in MAKERS[name][1]}
    subjects = dict.fromkeys(subject for arm in arms for subject in subjects_of(arm))
    jobs = []
    for seed in seeds:
        for name, (_, needs) in MAKERS.items():
            if name in wanted:
                made = {x: settings.models[x] for x in (name, *needs)}
                jobs.append(Job("model", name, seed, sha(made | {"task": settings.task}), needs))
        for subject in subjects:
            need = (maker_of[subject[0]],)
            jobs.append(Job("reference", "/".join(map(str, subject)), seed, settings.digest(), need, subject=subject))
        for arm in arms:
            needs = tuple(maker_of[model] for model in arm.models)
            for kind in kinds:
                if kind != "forecast" or arm.trainer != "sft":
                    jobs.append(Job(kind, arm.name, seed, settings.arm_digest(arm), needs))
    return jobs


def subjects_of(arm) -> list[tuple[str, str, str | None]]:
    """The references of an arm: its student before, and its teacher."""
    if arm.prompts == "pick":
        return []
    return [(arm.student, arm.prompts, None), (arm.teacher_model, arm.prompts, arm.context)]


def read_lines(home: Path) -> list[Line]:
    """What a study has so far; a half-written last line is left out."""
    path, lines = home / RESULTS, []
    if not path.exists():
        return []
    for text in path.read_text("utf-8").splitlines():
        with contextlib.suppress(ValueError):
            lines.append(parse_json(text))
    return lines


def matching(lines: Sequence[Line], jobs: Sequence[Job]) -> list[Line]:
    """The lines that belong to these jobs, the last of each, in the order of the jobs."""
    known = {key_of(line): line for line in lines}
    return [known[job.key] for job in jobs if job.key in known]


def run(
    jobs: Sequence[Job],
    *,
    settings: Settings,
    home: Path,
    workers: int,
    lock: int | None = None,
    started: Callable[[Job], None] = lambda job: None,
    ended: Callable[[Job, str | None], None] = lambda job, error: None,
) -> list[Job]:
    """Run the jobs that have no line yet in `results.jsonl` of the folder `home`, to which results are appended.

    `workers` is the number of processes, each of one thread; `started` and `ended` are called for each job, the latter
    with the error where it failed. `lock` is a descriptor that stays open until the processes have ended: they end
    with this one. Returns the jobs that failed, or that need one that did.
    """
    done, made_by = {key_of(line) for line in read_lines(home)}, conditions()
    is_open = [job for job in jobs if job.key not in done]
    made = {(job.name, job.seed) for job in jobs if job.kind == "model" and job.key in done}
    failed: list[Job] = []
    home.mkdir(parents=True, exist_ok=True)
    cut_unfinished_line(home / RESULTS)
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # before what is owned: it ends by itself, as the last
    with (
        owned(hold=[lock]) as owner,
        concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=prepare) as pool,
        owner.killing(),
    ):
        running: dict[concurrent.futures.Future, Job] = {}
        while is_open or running:
            for job in [x for x in is_open if all((need, x.seed) in made for need in x.needs)]:
                if len(running) == workers:
                    break
                is_open.remove(job)
                running[pool.submit(work, job, settings, home)] = job
                started(job)
            if not running:  # what is left needs a job that failed
                return failed + is_open
            finished, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in finished:
                job, error = running.pop(future), None
                try:
                    append_lines(home / RESULTS, [line_of(job, future.result(), made_by)])
                    made |= {(job.name, job.seed)} if job.kind == "model" else set()
                except concurrent.futures.process.BrokenProcessPool:
                    raise
                except Exception as problem:  # whatever it was: it is named, and the other jobs go on
                    error = f"{type(problem).__name__}: {problem}"
                    failed.append(job)
                ended(job, error)
    return failed


def key_of(line: Line) -> tuple[str, str, int, str]:
    """The key of the job that a line of `results.jsonl` comes from."""
    return line["kind"], line["name"], line["seed"], line["digest"]


def line_of(job: Job, result: Line, made_by: Line) -> Line:
    """The line of `results.jsonl` that holds the result of a job."""
    subject = dict(zip(("model", "prompts", "context"), job.subject, strict=True)) if job.subject else {}
    head = {"kind": job.kind, "name": job.name, "seed": job.seed, "digest": job.digest}
    return head | subject | {"result": result, "made": made_by}


def prepare() -> None:
    """Prepare a worker process: one thread, no network, no warnings."""
    import torch

    torch.set_num_threads(1)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    warnings.filterwarnings("ignore")


def work(job: Job, settings: Settings, home: Path) -> Line:
    """Do a job in this process; what it prints goes to `<seed>/logs/<name>.log`."""
    folder = home / str(job.seed)
    log = folder / "logs" / f"{job.kind}-{job.name.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with into_file(log):
        from . import arms, models

        if job.kind == "model":
            getattr(models, job.name)(folder, settings, job.seed)
            return {}
        if job.subject is not None:
            return arms.reference(*job.subject, job.seed, settings=settings, home=folder)
        run = arms.forecast if job.kind == "forecast" else arms.run_arm
        return run(rates.arm_of(settings, job.name), job.seed, settings=settings, home=folder)


@contextlib.contextmanager
def into_file(path: Path) -> Iterator[None]:
    """Send what this process prints into a file, that of libraries too."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(stream) for stream in (1, 2)]
    try:
        with path.open("w", encoding="utf-8") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            yield
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
