import time

import pytest

from opd_trl.evaluation.limited import LimitedCalls


MODULE = """
import os

def call(kind, n=0):
    if kind == "c code":
        return sum(range(10**13))  # looks at no signal
    if kind == "stubborn":
        while True:
            try:
                n += 1
            except BaseException:
                pass
    if kind == "print":
        print("noise")
        os.write(1, b"more noise")
    if kind == "memory":
        return len("x" * 2**34)
    if kind == "exit":
        os._exit(3)
    if kind == "raise":
        raise KeyError("no")
    return kind
"""


@pytest.fixture
def calls(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(MODULE)
    with LimitedCalls(str(file), "call", {"kind": "hello"}, workers=1, time_limit=0.3) as calls:
        yield calls


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("c code", (None, "timeout")),
        ("stubborn", (None, "timeout")),
        ("print", ("print", None)),
        ("memory", (None, "crash")),
        ("exit", (None, "crash")),
        ("raise", (None, "crash")),
        ("x" * 5_000_000, ("x" * 5_000_000, None)),
    ],
    ids=["c code", "stubborn", "print", "memory", "exit", "raise", "long"],
)
def test_a_call_ends_in_time_whatever_it_does_and_the_next_one_is_well(calls, kind, outcome):
    start = time.monotonic()
    assert calls([{"kind": kind}, {"kind": "well"}]) == [outcome, ("well", None)]
    # The clock on the wall would take 66 seconds.
    assert time.monotonic() - start < 30


def test_a_process_that_cannot_start_says_how_to_try_it(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_module")
    with (
        LimitedCalls(str(tmp_path / "broken.py"), "call", {}, workers=1, time_limit=1) as calls,
        pytest.raises(RuntimeError, match=r"did not start \(exit status 1\)"),
    ):
        calls([{}])


@pytest.mark.parametrize("options", [{"workers": 0, "time_limit": 1}, {"workers": 1, "time_limit": 0}])
def test_limits_must_be_limits(options):
    with pytest.raises(ValueError, match=r"workers must be >= 1 and time_limit > 0"):
        LimitedCalls("x.py", "f", {}, **options)
