"""What `opd-trl pipeline` does: read stages, check them, run each as a process of its own, record what it wrote."""
