"""Text of others reaches the terminal spelt out: prints, errors, logs, tables; with no key and no password."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from opd_trl.cli import terminal
from opd_trl.cli.main import main
from opd_trl.cli.pipelines.child import copy
from opd_trl.screen import SPELT, Screen, printable
from opd_trl.scripts.consoles import plain_console


ROOT = Path(__file__).parents[2]
FOREIGN = "\x1b]0;title\x07\x1b[2J\x1b[31mred\x9bm\u009d\r\u202eevil\u2066\x7f\x00"
MARKUP = "[red]x[/red] [link=http://evil]y[/link] [/] :smile:"


def is_clean(text: str) -> bool:
    return not set(text) & set(map(chr, SPELT))


def written(*texts: str) -> str:
    stream = io.StringIO()
    screen = Screen(stream)
    for text in texts:
        assert screen.write(text) == len(text)
    return stream.getvalue()


def test_control_characters_are_spelt_out_and_lines_stay():
    assert printable("a\tb\nü東\u200d") == "a\tb\nü東\u200d"
    assert printable("\x1b[2J\r\x9b\u202e\ud800") == "\\x1b[2J\\x0d\\x9b\\u202e\\ud800"
    assert is_clean(written(FOREIGN.removeprefix("\r"), "x" + FOREIGN))


def test_a_progress_bar_moves():
    assert written("\r 50%|#", "\n", "\x1b[A", "\x1b[A\x1b[A", "\r") == "\r 50%|#\n\x1b[A\x1b[A\x1b[A\r"
    assert written("\r 50%\rover", "x\x1b[A", "\x1b[A\x1b[2J") == "\r 50%\\x0doverx\\x1b[A\\x1b[A\\x1b[2J"


@pytest.mark.attack("client", "the key, or a password in an address, in any text of a process", "is left out of it")
def test_no_key_and_no_password_is_shown(monkeypatch):
    monkeypatch.setenv("OPD_TRL_API_KEY", " s3cret-Key\n")
    shown = written("key s3cret-Key at http://me:hunter2@host:1/v1?api_key=hunter2&n=1, me:hunter2@host\n")
    assert "s3cret" not in shown
    assert "hunter2" not in shown
    assert "host:1/v1" in shown


@pytest.mark.attack(
    "client",
    "terminal escapes in names of runs, recipes, keys, stages, models and commands",
    "reach the terminal spelt out",
)
@pytest.mark.parametrize(
    "argv",
    [
        ["report", f"run{FOREIGN[:-1]}"],
        ["methods", FOREIGN],
        ["recipes", "show", FOREIGN],
        [FOREIGN],
        ["data", "prepare", f"rows{FOREIGN[:-1]}.jsonl", "--output", "out.jsonl"],
        ["serve-teacher", "--model", f"./model{FOREIGN[:-1]}"],
        ["serve-teacher", "--model", "m", "--port", FOREIGN],
        ["pipeline", "--config", "{folder}/pipeline.yaml"],
        ["opd", "--config", "{folder}/recipe.yaml"],
        ["opd", f"--{FOREIGN}", "x"],
    ],
)
def test_what_a_command_says_holds_no_escapes(argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPD_TRL_API_KEY", raising=False)
    Path("pipeline.yaml").write_text('stages:\n  "a\\e[2J\\r":\n    run: "opd-trl x\\e]0;t\\a"\n', encoding="utf-8")
    Path("recipe.yaml").write_text('"key\\e[2J": "value\\e[31m"\n', encoding="utf-8")
    try:
        status = main([argument.replace("{folder}", str(tmp_path)) for argument in argv])
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    assert status == 2
    assert err
    assert is_clean(out + err)
    assert "\\x1b" in err


@pytest.mark.attack("client", "escapes and rich's markup in a table, a title or a bar", "are shown as text")
@pytest.mark.parametrize("kind", ["print", "table", "text", "bar", "other"])
def test_rich_shows_foreign_text_as_it_is(kind):
    file = io.StringIO()
    options = {"file": file, "width": 500, "color_system": None, "force_terminal": False}
    console = plain_console(**options)
    text = MARKUP + FOREIGN
    if kind == "print":
        console.print(text, style="red")
    elif kind == "table":
        table = Table(text, title=text)
        table.add_row(text)
        console.print(table)
    elif kind == "text":
        console.print(Text.assemble(terminal.verdict("ok"), text))
    elif kind == "bar":
        visible = plain_console(**options | {"force_terminal": True})
        with terminal.progress(f"{text} {{x}}", 2, visible) as advance:
            advance(note=text)
    else:
        Console(**options).print(Text(text))  # of another library
    found = file.getvalue()
    assert MARKUP in found
    assert "]0;title" in found
    if kind == "bar":  # it moves and hides the cursor
        assert "\x1b]0;" not in found
        assert "\x1b[2J" not in found
        assert "\x07" not in found
    else:
        assert is_clean(found)


def test_logs_and_tracebacks_pass_the_screen_too():
    code = (
        "import logging, sys\nfrom opd_trl.screen import guarded_screen\n"
        "with guarded_screen():\n"
        "    logging.getLogger('x').warning(sys.argv[1])\n"
        "    print(sys.argv[1])\n"
        "    raise ValueError('s3cret-Key ' + sys.argv[1])\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPD_TRL_API_KEY": "s3cret-Key"}
    done = subprocess.run([sys.executable, "-c", code, FOREIGN[:-1]], capture_output=True, env=env)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 1
    assert "ValueError: (left out) \\x1b]0;title" in err
    assert is_clean(out + err)


def test_a_stage_moves_its_bar_through_the_screen(tmp_path):
    ours, theirs = os.pipe()
    os.write(theirs, b" 10%\r 20%\r 30%\x1b[2J\n")
    os.close(theirs)
    stream = io.StringIO()
    with os.fdopen(ours, "rb") as source, (tmp_path / "log").open("wb") as log:
        copy(source, Screen(stream), log)
    assert stream.getvalue() == " 10%\r 20%\r 30%\\x1b[2J\n"
