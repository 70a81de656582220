"""How the server starts, and what keeps it from starting."""

import shutil
import signal
import socket
from pathlib import Path

import pytest
import requests

from opd_trl.cli import serve_teacher
from opd_trl.cli.main import main
from opd_trl.serving import app, start
from tests.serving.server import ROOT, server_process


@pytest.fixture
def refused(capsys, monkeypatch):
    """Run a command line that must be refused, in this process; return the one line of the error."""
    monkeypatch.delenv("OPD_TRL_API_KEY", raising=False)
    monkeypatch.setattr(start.signal, "signal", lambda *_: None)  # those of pytest stay

    def serve(self, sockets):
        raise AssertionError("it serves")

    monkeypatch.setattr("uvicorn.Server.run", serve)

    def run(*argv: str) -> str:
        try:
            status = main(["serve-teacher", *argv])
        except SystemExit as exit_:  # argparse
            status = exit_.code
        error = capsys.readouterr().err
        assert status == 2
        assert error.startswith("opd-trl serve-teacher: error: ")
        assert error.count("\n") == 1
        return error

    return run


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """Loading fails the test."""

    def load(args):
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(app, "load", load)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--model", "./nowhere"], "--model ./nowhere does not exist (looked in "),
        (["--model", "a/b/c"], "--model a/b/c does not exist"),
        (["--model", str(ROOT / "docs")], "docs holds no config.json: it is not the folder of a saved model."),
        (["--port", "8001"], "the following arguments are required: --model"),
        (["--model", "m", "--port", "80000"], "argument --port: expected a port from 0 to 65535, got '80000'"),
        (["--model", "m", "--port", "x"], "argument --port: expected a port from 0 to 65535, got 'x'"),
        (["--model", "m", "--batch-size", "0"], "argument --batch-size: expected a whole number >= 1, got '0'"),
        (["--model", "m", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--model", "m", "--model-init-kwargs", "{"], "argument --model-init-kwargs: '{' is not JSON"),
        (["--model", "m", "--model-init-kwargs", "[1]"], "'[1]' is not a JSON object, such as"),
        (["--model", "m", "--modle", "x"], "unrecognized arguments: --modle x"),
        (["--model", "m", "--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines, and OPD_TRL_API_"),
        (["--model", "m", "--host", "0.0.0.0"], "Set it here and for the students, e.g. `export OPD_TRL_API_KEY="),
        (["--model", "m", "--host", "::"], "--host :: can be reached from other machines"),
        (["--model", "m", "--host", "192.0.2.1"], "--host 192.0.2.1 can be reached from other machines"),
        (["--model", "m", "--host", "not a host"], "--host not a host is not an address of this machine"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_loaded(refused, flags, text):
    assert text in refused(*flags)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_port_in_use_is_refused_before_anything_is_loaded(refused):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        message = refused("--model", "m", "--port", port)
    assert f"port {port} of 127.0.0.1 cannot be used (Address already in use). Give another --port." in message


@pytest.mark.usefixtures("nothing_is_loaded")
def test_an_empty_key_is_no_key(refused, monkeypatch):
    monkeypatch.setenv("OPD_TRL_API_KEY", " ")
    assert "OPD_TRL_API_KEY is not set" in refused("--model", "m", "--host", "0.0.0.0")


def test_an_adapter_that_names_no_base_is_refused(refused, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "is a LoRA adapter and names no base model" in refused("--model", str(tmp_path), "--port", "0")


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("missing", [["fastapi"], ["uvicorn"], ["fastapi", "uvicorn"]])
def test_a_missing_package_names_the_extra(refused, monkeypatch, missing):
    find_spec = start.importlib.util.find_spec
    monkeypatch.setattr(start.importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name))
    message = refused("--model", "m")
    assert f'{" and ".join(missing)} not installed. Install with: pip install "opd_trl[serve]"' in message


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--max-length", "600"], "--max-length 600 exceeds the context window of 512 tokens. Give at most 512."),
        (["--device", "abacus"], "on abacus: "),
        (["--model-init-kwargs", '{"dtpe": "float32"}'], "unexpected keyword argument 'dtpe'"),
        (["--model-init-kwargs", '{"quantization_config": {"quant_method": "abacus"}}'], "abacus"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(refused, student_path, flags, text):
    message = refused("--model", student_path, "--port", "0", *flags)
    assert f"cannot serve {student_path} on " in message
    assert text in message


def test_weights_that_are_cut_short_are_one_line(refused, student_path, tmp_path):
    shutil.copytree(student_path, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"cannot serve {tmp_path} on " in refused("--model", str(tmp_path), "--port", "0")


def test_a_broken_config_is_one_line(refused, tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert f"cannot serve {tmp_path} on " in refused("--model", str(tmp_path), "--port", "0")


@pytest.mark.attack("server", "SIGKILL to the server", "nothing is left in the temporary folder: nothing is put there")
def test_the_start_says_what_is_served_and_the_end_leaves_nothing_behind(student_path, tmp_path):
    env = {"OPD_TRL_API_KEY": "secret-key", "TMPDIR": str(tmp_path)}
    with server_process(student_path, "--host", "0.0.0.0", "--max-length", "99", env=env) as (url, process):
        port = url.rpartition(":")[2]
        assert requests.get(f"{url}/v1/models", headers={"Authorization": "Bearer secret-key"}).status_code == 200
        assert list(tmp_path.iterdir()) == []  # no copy of the head, which a SIGKILL would leave
        assert "secret-key" not in Path(f"/proc/{process.pid}/cmdline").read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        log = process.log.read_text()
    assert list(tmp_path.iterdir()) == []
    assert "secret-key" not in log
    name = socket.gethostname()
    assert log[log.index("Serving ") :].splitlines() == [
        f"Serving {student_path}",
        f"  address     http://{name}:{port}",
        "  vocabulary  103 tokens, a head of 103 rows",
        "  context     99 tokens",
        "  dtype       float32",
        "  device      cpu",
        "  key         asked for (OPD_TRL_API_KEY)",
        f"  recipe      teacher_server_url: http://{name}:{port}",
    ]


def test_help_names_every_flag(capsys):
    assert main(["serve-teacher", "--help"]) == 0
    printed = capsys.readouterr().out
    flags = [flag for action in serve_teacher.make_parser()._actions for flag in action.option_strings]
    assert all(f"\n  {flag} " in printed for flag in flags)
    defaults = ("8001", "127.0.0.1", "4096, on a CPU 1024", "64", "100", "16", "32")
    assert all(f"default {default}" in printed for default in defaults)


def test_the_socket_names_its_protocol_so_that_small_answers_leave_at_once():
    """asyncio sets TCP_NODELAY on such sockets alone; without it every answer takes 40 ms more."""
    with start.bind("127.0.0.1", 0) as sock:
        assert sock.proto == socket.IPPROTO_TCP
