"""What a configuration was given by hand: fields that exist, of the right types, told from what a parser fills in."""

import copy
import dataclasses
import inspect
import math
import os
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

from .spelling import did_you_mean


class Unnamed:
    """A default as parsers see it: they pass every field, and this one says that nobody named it.

    It equals the plain value, and prints like it.
    """

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return self.value == plain(other)

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return repr(self.value)

    def __str__(self) -> str:
        return str(self.value)


def plain(value: Any) -> Any:
    """The value itself, also where it is the default of a field that nobody named."""
    return value.value if isinstance(value, Unnamed) else value


def default_of(field: dataclasses.Field) -> Any:
    """The default of a field of a dataclass."""
    return plain(field.default if field.default_factory is dataclasses.MISSING else field.default_factory())


class Settings(type):
    """The class of configurations: it refuses unknown fields, and notes in `_given` which ones were set by hand."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        check_keywords(cls.__name__, kwargs, parameters_of(cls.__init__))
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        passed = dict(zip(fields, args, strict=False)) | kwargs
        by_parser = any(isinstance(value, Unnamed) for value in passed.values())
        # What a parser passes of the other fields counts where it is off the default.
        usual = {name: default_of(f) for name, f in fields.items() if by_parser and not isinstance(f.default, Unnamed)}
        # A subclass in the user's script takes over our fields, and with them such defaults.
        cls.__init__.__defaults__ = tuple(map(plain, cls.__init__.__defaults__ or ()))
        config = cls.__new__(cls)
        config._given = frozenset(
            name
            for name, value in passed.items()
            if not isinstance(value, Unnamed) and not (name in usual and value == usual[name])
        )
        config.__init__(*map(plain, args), **{name: plain(value) for name, value in kwargs.items()})
        return config

    @property
    def __signature__(cls) -> inspect.Signature:
        """The fields with their types and defaults, for help and completion."""
        found = inspect.signature(cls.__init__)
        own = list(found.parameters.values())[1:]
        return found.replace(parameters=[p.replace(default=plain(p.default)) for p in own], return_annotation=cls)


def tells_what_is_given(*names: str, shared: str | None = None):
    """A decorator of a configuration: a parser's default of these fields is told from the same value set by hand.

    Switches that are on by default stay as they are: a parser makes a `--no_` flag of those alone.

    Args:
        names: fields; those that the configuration does not have are left out.
        shared: a field that a script's own arguments may have too.
    """

    def mark(config_class: type) -> type:
        fields = config_class.__dataclass_fields__
        for name in set(names) & fields.keys():
            default = fields[name].default
            if default is not dataclasses.MISSING and default is not True and not isinstance(default, Unnamed):
                fields[name] = copy.copy(fields[name])  # a parent has the same one
                fields[name].default = Unnamed(default)
        if shared is not None:
            fields[shared] = SharedField.of(fields[shared])
        return config_class

    return mark


def parameters_of(function) -> dict[str, inspect.Parameter]:
    """The parameters of a method by name, without `self`."""
    return dict(list(inspect.signature(function).parameters.items())[1:])


def all_parameters(owner: type) -> dict[str, inspect.Parameter]:
    """The parameters that a class takes, those among them that it hands on to its parents as `**kwargs`."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found: dict[str, inspect.Parameter] = {}
    kind: dict[str, Any] = {}
    for parent in (parent for parent in owner.__mro__ if "__init__" in vars(parent)):
        own = parameters_of(parent.__init__)
        found |= {n: p.replace(**kind) for n, p in own.items() if n not in found and p.kind not in variadic}
        kinds = {p.kind for p in own.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
        if inspect.Parameter.VAR_POSITIONAL not in kinds:
            kind = {"kind": inspect.Parameter.KEYWORD_ONLY}
    return found


class FullSignature:
    """The signature of a class with what it hands on to its parents, for help and completion."""

    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        return inspect.Signature(sorted(all_parameters(owner).values(), key=lambda p: p.kind))


def check_keywords(owner: str, given: Iterable[str], known: dict[str, inspect.Parameter]) -> None:
    """Raise TypeError for a keyword that there is not, with the nearest that there is."""
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):  # somebody else checks
        return
    unknown = [name for name in given if name not in known]
    if unknown:
        none = f"nothing is spelt like it; see help({owner})."
        hints = " ".join(f"{name!r}: {did_you_mean(name, known, otherwise=none)}" for name in unknown)
        raise TypeError(f"{owner} has no such argument. {hints}")


class SharedField(dataclasses.Field):
    """A field whose flag a script's own arguments may have too, as in TRL's SDFT script: a parser leaves it to them.

    A parser asks `init` whether to make a flag of a field, and an equal flag of two classes is an error there.
    """

    __slots__ = ()

    @property
    def init(self) -> bool:
        """False while a parser asks that has another class with this field."""
        frame = sys._getframe(1)
        for _ in range(3):
            classes = getattr(frame.f_locals.get("self"), "dataclass_types", None) if frame is not None else None
            if classes:
                return sum(self.name in other.__dataclass_fields__ for other in classes) < 2
            frame = frame and frame.f_back
        return True

    @classmethod
    def of(cls, field: dataclasses.Field) -> "SharedField":
        """The same field, as one that may be shared."""
        shared = cls.__new__(cls)
        for name in set(dataclasses.Field.__slots__) - {"init"}:
            setattr(shared, name, getattr(field, name))
        return shared


#: Limits that an infinity takes away.
MAY_BE_INFINITE = (
    *("max_grad_norm", "delta", "epsilon_high", "off_policy_mask_threshold"),
    *("vllm_importance_sampling_cap", "vllm_importance_sampling_clip_max"),
    *("loss_importance_cap", "loss_pointwise_clip"),
)


def check_finite(values: Any, where: str = "") -> None:
    """Raise ValueError that names the first number which is NaN, or infinite and not in `MAY_BE_INFINITE`.

    `values` is a configuration or a mapping; lists, mappings and dataclasses in it are looked into. `where` stands
    before the names.

    Example:
        >>> check_finite({"max_grad_norm": math.inf, "rates": {"low": 0.1, "high": math.nan}})
        Traceback (most recent call last):
        ValueError: rates.high must be a finite number, got nan.
    """
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        values = {field.name: getattr(values, field.name, None) for field in dataclasses.fields(values)}
    elif isinstance(values, list | tuple):
        values = dict(enumerate(values))
    if isinstance(values, Mapping):
        for name, value in values.items():
            if not (name in MAY_BE_INFINITE and value == math.inf):
                check_finite(value, f"{where}.{name}" if where else str(name))
    elif isinstance(values, Real) and not isinstance(values, Integral) and not math.isfinite(values):
        raise ValueError(f"{where} must be a finite number, got {values}.")


WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list[str]: "a list of texts",
}
FITS = {
    int: lambda value: isinstance(value, Integral) and not isinstance(value, bool),
    float: lambda value: isinstance(value, Real) and not isinstance(value, bool),
    bool: lambda value: value in (True, False),
    str: lambda value: isinstance(value, str),
    list[str]: lambda value: isinstance(value, list | tuple) and all(isinstance(x, str) for x in value),
}


@cache
def kinds_of(config_class: type) -> dict[str, set[Any]]:
    """Field -> its types without None, of the fields whose types are all simple ones or lists of text."""
    hints, simple = get_type_hints(config_class), {int, float, bool, str, list[str]}
    kinds = {name: set(get_args(hint)) - {type(None)} if hint != list[str] else {hint} for name, hint in hints.items()}
    kinds = {name: found or {hints[name]} for name, found in kinds.items()}
    return {field.name: found for field in dataclasses.fields(config_class) if (found := kinds[field.name]) <= simple}


def check_types(config: Any, parent: type) -> None:
    """Raise TypeError for a value of another type than its field's, ValueError for a number that is not finite.

    A path becomes text, 5.0 the whole number 5.

    Args:
        config: a configuration.
        parent: TRL's class that it extends. Of its fields only numbers and switches are checked: their texts take
            other types too.
    """
    check_finite(config)
    for name, kinds in kinds_of(type(config)).items():
        value = getattr(config, name)
        if value is None or (name in parent.__dataclass_fields__ and kinds & {str, list[str]}):
            continue
        if isinstance(value, os.PathLike) and str in kinds:
            setattr(config, name, os.fspath(value))
        elif kinds == {int} and isinstance(value, float) and value.is_integer():
            setattr(config, name, int(value))
        elif not any(FITS[kind](value) for kind in kinds):
            wanted = " or ".join(WORDS[kind] for kind in kinds)
            remedy = f" Write [{value!r}]." if list[str] in kinds else " Write it without quotes."
            said = f"{name} must be {wanted}, got {value!r} ({type(value).__name__})."
            raise TypeError(said + (remedy if isinstance(value, str) else ""))
