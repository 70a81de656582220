"""What `opd-trl eval` does."""
