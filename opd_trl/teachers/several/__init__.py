"""Several teachers: which of them counts for which row, and the mean of all."""
