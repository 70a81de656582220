"""Training scripts in the shape of TRL's: `make_parser()` and `main(...)`; run with `accelerate launch -m`."""

from .quiet import quiet_start


quiet_start()  # some libraries speak when they are imported, so before any of them
