from tests.cli.conftest import here, make_parser, parse  # noqa: F401 - fixtures
