import os

import pytest
import torch

from tests.gpu.place import CPU, CUDA, Place
from tests.gpu.planted import Planted, plant
from tests.preflight.conftest import recipe, run  # noqa: F401 - fixtures


NO_CUDA = pytest.mark.skip(reason="no CUDA device here; the same test runs on the CPU at small sizes")
PLACES = [CUDA] if torch.cuda.is_available() else [CPU, pytest.param(CUDA, marks=NO_CUDA)]
TABLE = "relative errors and other figures"


@pytest.fixture(scope="session", params=PLACES, ids=lambda place: place.device.type)
def place(request) -> Place:
    """The device under test. Float64 references are computed on the CPU, with all its cores beside a GPU."""
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    if request.param.on_cuda:
        torch.set_num_threads(os.cpu_count())
    yield request.param
    torch.set_float32_matmul_precision(precision)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def planted(place) -> Planted:
    return plant(place.small)


@pytest.fixture(scope="session")
def planted_large(place) -> Planted:
    return plant(place.large)


@pytest.fixture
def only_on_cuda(place):
    """Skip what a CPU has no counterpart of."""
    if not place.on_cuda:
        pytest.skip("looks at the stream of a CUDA device, and a CPU has none")


@pytest.fixture
def note(record_property, place):
    """Write figures into the table at the end of the run."""

    def write(name: str, dtype: torch.dtype | None = None, **figures: float) -> None:
        where = [place.device.type] + ([] if dtype is None else [str(dtype).removeprefix("torch.")])
        record_property(TABLE, [" ".join([*where, name]), figures])

    return write


def pytest_terminal_summary(terminalreporter):
    lines = [
        f"{name:<64}" + "".join(f"  {figure} {value:<9.2g}" for figure, value in figures.items())
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for table, (name, figures) in getattr(report, "user_properties", [])
        if table == TABLE
    ]
    if lines:
        terminalreporter.write_sep("=", TABLE)
        terminalreporter.write_line("\n".join(lines))
