"""What `verify-loss` and `preflight` do: look at a run on its own models and prompts before it starts."""
