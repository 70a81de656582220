"""What the server of children.py computes once, which takes each child a second: a table of transformers."""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping


get_checkpoint_conversion_mapping("qwen3")
