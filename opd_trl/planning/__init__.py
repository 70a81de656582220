"""What `opd-trl plan` computes: from a recipe and an engine to the memory on each GPU, as arithmetic."""
