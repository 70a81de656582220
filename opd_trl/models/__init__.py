"""Floor 2: run a causal language model: load it, read its hidden states and head, shard it, sample from it."""
