"""What an import costs: floor 0 needs torch alone, the package itself nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

import opd_trl


@pytest.mark.parametrize(
    ("statement", "needed", "refused"),
    [
        ("import opd_trl", set(), {"torch", "transformers", "trl", "numpy"}),
        ("import opd_trl.losses", {"torch"}, {"transformers", "trl", "accelerate", "datasets", "peft"}),
        ("import opd_trl; opd_trl.losses", {"torch"}, {"transformers", "trl", "accelerate", "datasets", "peft"}),
    ],
)
def test_an_import_loads_no_more_than_its_floor_needs(statement, needed, refused):
    program = f"import sys; {statement}; print(*(set({sorted(needed | refused)!r}) & set(sys.modules)))"
    root = Path(opd_trl.__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) == needed


def test_the_losses_export_the_public_names_of_the_design():
    import opd_trl.losses as losses

    for name in (
        "forward_kl",
        "reverse_kl",
        "generalized_jsd",
        "support_divergence",
        "sampled_token_loss",
        "select_support",
        "masked_mean",
        "chunked_support_log_probs",
        "chunked_support_loss",
    ):
        assert name in losses.__all__
        assert callable(getattr(losses, name))


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'opd_trl' has no attribute 'OPDTraner'"):
        _ = opd_trl.OPDTraner
