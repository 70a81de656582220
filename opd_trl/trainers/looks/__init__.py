"""A trainer that looks, beside its run, at what its student writes: rollouts, both models on them, held-out rows."""
