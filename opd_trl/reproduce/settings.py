"""What `opd-trl reproduce` runs, read from YAML: models, arms, claims. Fixed before the runs."""

import dataclasses
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..scripts.recipe_files import load_mapping
from .puzzles import TASKS


#: Function of `models` that makes models -> the models that it makes, and the functions that must have run before.
MAKERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "own": (("own", "weak", "strong"), ()),
    "other": (("other",), ()),
    "adapted": (("adapted",), ("own",)),
    "stabilized": (("stabilized",), ("own", "other")),
}
MODELS = tuple(model for made, _ in MAKERS.values() for model in made)
# The student itself with a privileged context.
SELF = "self"
TRAINERS = ("distil", "penalty", "sft")
#: Parts of the settings that may be null, and what each has otherwise.
KEYS = {"rates": ("values", "seeds"), "trial": ("steps", "prompts")}
OUTCOMES = ("accuracy", "marked", "pick")


class SettingsError(ValueError):
    """A settings file that cannot be run."""


@dataclass(frozen=True)
class Arm:
    """One training run, repeated for every seed.

    Attributes:
        name: under which results are kept.
        student: a model of `MODELS`.
        teacher: another one, or `self`.
        prompts: `solve`, `quick` or `pick`.
        context: privileged context of the teacher; see `task.CONTEXTS`.
        trainer: `distil`; `penalty`: a constant in place of the teacher's figures; `sft`: on the teacher's text.
        fields: of OPDConfig, beyond those that all arms share.
        outcome: what decides whether it worked: `accuracy`, `marked` or `pick`.
        label: its name in tables and pictures.
    """

    name: str
    student: str
    teacher: str
    prompts: str
    label: str
    context: str | None = None
    trainer: str = "distil"
    fields: dict[str, Any] | None = None
    outcome: str = "accuracy"

    @property
    def models(self) -> tuple[str, ...]:
        """The models that must have been trained before: of the student and of the teacher."""
        return tuple(dict.fromkeys((self.student, self.teacher_model)))

    @property
    def teacher_model(self) -> str:
        """The model whose weights teach: that of the student where it is its own teacher."""
        return self.student if self.teacher == SELF else self.teacher


@dataclass(frozen=True)
class Claim:
    """A claim, `text` under the heading `title`, and the arms that speak to it, in the order of its table.

    Attributes:
        against: the arm that the others are compared with.
        figures: log names that the table and the picture show beside the outcome.
        checks: pairs (above, below): the claim wants the first to end above the second. Each is an arm, for its
            outcome, or `arm:figure`; see `comparisons.figure`.
    """

    name: str
    title: str
    text: str
    arms: tuple[str, ...]
    against: str
    figures: tuple[str, ...] = ()
    checks: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_yaml(cls, name: str, spec: dict[str, Any]) -> "Claim":
        """A claim as the settings file has it: its lists become tuples."""
        lists = {field: tuple(spec.get(field, ())) for field in ("arms", "figures")}
        return cls(**spec | lists | {"name": name, "checks": tuple(map(tuple, spec.get("checks", ())))})

    @property
    def compared(self) -> list[str]:
        """Names of the arms that the checks compare."""
        return [side.partition(":")[0] for check in self.checks for side in check]


@dataclass(frozen=True)
class Settings:
    """All that a study runs: models, arms, and the claims that they speak to.

    Attributes:
        models: settings of each model that is trained beforehand.
        training: fields of OPDConfig that all arms share.
        evaluation: `samples` for each problem, `max_new_tokens`.
        preflight: `prompts`, `contexts`.
        arms, claims: by name.
        task: a name of `puzzles.TASKS`.
        rates: `values`: learning rates of which each arm takes its best; `seeds` on which it is chosen, which are none
            of those that are reported. None: all arms take that of `training`.
        trial: `steps`, after which and half-way to which each run is looked at on so many held-out `prompts`.
    """

    models: dict[str, Any]
    training: dict[str, Any]
    evaluation: dict[str, Any]
    preflight: dict[str, Any]
    arms: dict[str, Arm]
    claims: dict[str, Claim]
    task: str = "sums"
    rates: dict[str, Any] | None = None
    trial: dict[str, Any] | None = None

    def digest(self) -> str:
        """Twelve digits that change with all that results depend on, so that those of other settings stay apart."""
        shared = {"models": self.models, "training": self.training, "evaluation": self.evaluation, "task": self.task}
        return sha(shared | {"preflight": self.preflight, "trial": self.trial})

    def arm_digest(self, arm: Arm) -> str:
        """Twelve digits that change with the settings of an arm, its label aside, and with those of all arms."""
        return sha({"shared": self.digest(), "arm": asdict(arm) | {"label": ""}})

    def chosen(self, only: list[str]) -> list[str]:
        """Names of the arms that these claims and arms mean, all for none; raises SettingsError for others."""
        unknown = [name for name in only if name not in self.claims and name not in self.arms]
        if unknown:
            raise SettingsError(
                f"--only {unknown[0]}: no such claim or arm. Claims: {', '.join(self.claims)}. "
                f"Arms: {', '.join(self.arms)}."
            )
        names = [arm for name in only for arm in (self.claims[name].arms if name in self.claims else [name])]
        return list(dict.fromkeys(names)) or list(self.arms)


def sha(content: Any) -> str:
    """The first 12 digits of the SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def read_settings(path: Path, *, section: str | None = None) -> Settings:
    """Read a settings file, one of its `sections` over it where asked for; raises SettingsError for unknown names."""
    try:
        content = load_mapping(path)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    over = content.pop("sections", {})
    if section is not None:
        if section not in over:
            raise SettingsError(f"{path} has no section {section!r}. Its sections: {', '.join(over) or 'none'}.")
        content = merged(content, over[section])
    kept = content.pop("only", None)
    try:
        arms = {name: Arm(name=name, **spec) for name, spec in content.pop("arms").items()}
        claims = {name: Claim.from_yaml(name, spec) for name, spec in content.pop("claims").items()}
        settings = Settings(arms=arms, claims=claims, **content)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise SettingsError(f"{path}: {error}.") from error
    check(settings, path)
    return settings if kept is None else only(settings, kept)


def at_rate(settings: Settings, rate: float) -> Settings:
    """The same study at one learning rate of all arms; raises SettingsError unless it is above 0."""
    if not rate > 0:
        raise SettingsError(f"--rate must be > 0, got {rate}.")
    return dataclasses.replace(settings, training=settings.training | {"learning_rate": rate}, rates=None)


def merged(below: Any, above: Any) -> Any:
    """Mappings merged key by key; anything else from above."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: merged(below.get(key), value) for key, value in above.items()}
    return above


def only(settings: Settings, kept: list[str]) -> Settings:
    """Settings with the arms of these names alone, and the claims that speak of them."""
    arms = {name: settings.arms[name] for name in kept}
    claims = {
        name: dataclasses.replace(claim, arms=tuple(arm for arm in claim.arms if arm in arms))
        for name, claim in settings.claims.items()
        if set(claim.arms) & set(arms)
    }
    return dataclasses.replace(settings, arms=arms, claims=claims)


def check(settings: Settings, path: Path) -> None:
    """Raise SettingsError for a missing key, and for a name of no model, trainer, outcome or arm."""
    for part, keys in KEYS.items():
        missing = [key for key in keys if key not in (getattr(settings, part) or dict.fromkeys(keys))]
        if missing:
            raise SettingsError(f"{path}: {part} lacks {missing[0]!r}; it has {', '.join(keys)}.")
    if settings.task not in TASKS:
        raise SettingsError(f"{path}: task is {settings.task!r}, expected one of {', '.join(TASKS)}.")
    for arm in settings.arms.values():
        known = {"student": MODELS, "teacher": (*MODELS, SELF), "trainer": TRAINERS, "outcome": OUTCOMES}
        for field, names in known.items():
            if getattr(arm, field) not in names:
                raise SettingsError(
                    f"{path}, arm {arm.name}: {field} is {getattr(arm, field)!r}, expected one of {', '.join(names)}."
                )
    for claim in settings.claims.values():
        missing = [name for name in (*claim.arms, claim.against, *claim.compared) if name not in settings.arms]
        if missing:
            raise SettingsError(f"{path}, claim {claim.name}: there is no arm {missing[0]!r}.")
