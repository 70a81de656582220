"""Pip constraints of the lowest versions that setup.cfg promises: `python tests/ranges/floor.py > FILE`.

A requirement without a lower bound is a tool of the tests; its version, and what the requirements require themselves,
is left to pip.
"""

import configparser
import re
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Print one `name==version` per lower bound."""
    for name, bound in sorted(read_bounds().items()):
        if bound is not None:
            print(f"{name}=={bound}")


def read_bounds() -> dict[str, str | None]:
    """The lower bound of each requirement of setup.cfg, extras too, by its normalised name; None where it has none."""
    bounds: dict[str, str | None] = {}
    for line in read_requirements():
        name, bound = normalise(re.match(r"[\w.-]+", line)[0]), re.search(r">=([\w.]+)", line)
        version = bound and bound[1]
        if bounds.setdefault(name, version) != version:
            raise ValueError(f"setup.cfg gives {name} two lower bounds: {bounds[name]} and {version}. Make them one.")
    return bounds


def read_requirements() -> list[str]:
    """Every requirement of setup.cfg as it stands there."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = [text for _, text in config.items("options.extras_require")]
    return [line for text in (config["options"]["install_requires"], *extras) for line in text.split()]


def normalise(name: str) -> str:
    """The spelling of a package's name that compares equal: reasoning_gym is reasoning-gym."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
