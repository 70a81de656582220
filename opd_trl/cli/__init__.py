"""The command line: what `opd-trl` dispatches to."""
