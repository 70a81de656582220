"""`opd-trl where`: the folder of the recipes."""

from ..scripts.recipe_files import recipes_dir


def main(argv: list[str]) -> int:
    """Print the folder; there are no flags."""
    print(recipes_dir())
    return 0
