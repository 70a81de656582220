"""The server with limits that a test can wait for: `python -m tests.serving.impatient serve-teacher ...`."""

import sys

from opd_trl.cli.main import main


if __name__ == "__main__":  # not in the process that reads large requests
    from opd_trl.serving import app, http_limits, service

    http_limits.HEAD_LIMIT = http_limits.WRITE_LIMIT = 1.5
    http_limits.LINES = 5
    service.UNREAD = 1 << 16
    app.SHUTDOWN_LIMIT = 1
    sys.exit(main(sys.argv[1:]))
