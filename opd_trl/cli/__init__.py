"""The command line: `opd-trl opd|opsd|recipes|demo|env`."""
