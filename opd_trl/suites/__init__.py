"""What `opd-trl eval` does: problems, a protocol, samples on disk, and the figures of each suite."""
