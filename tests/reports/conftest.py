import pytest

from opd_trl.cli.main import main


@pytest.fixture
def report(capsys):
    """Run `opd-trl report`; return exit status, standard output and standard error."""

    def run(*argv):
        capsys.readouterr()
        status = main(["report", *map(str, argv)])
        streams = capsys.readouterr()
        return status, streams.out, streams.err

    return run


@pytest.fixture
def refused(report, tmp_path, monkeypatch):
    """Run a command line that must be refused without writing anything; return its error."""

    monkeypatch.chdir(tmp_path)

    def run(*argv):
        before = sorted(tmp_path.rglob("*"))
        status, out, error = report(*argv)
        assert (status, out) == (2, "")
        assert error.startswith("opd-trl report: error: ")
        assert error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return run
