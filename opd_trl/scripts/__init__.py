"""Training scripts in the shape of TRL's: `make_parser()` and `main(...)`; run with `accelerate launch -m`."""
