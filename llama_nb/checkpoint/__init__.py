"""Published checkpoints, read one slice of one tensor at a time."""

from llama_nb.checkpoint.base import Checkpoint
from llama_nb.checkpoint.load import load_params, open_checkpoint

__all__ = ["Checkpoint", "load_params", "open_checkpoint"]
