"""Learning.

optimizer   AdamW, its schedule, what decays
step        loss, gradients and update, as one program
"""

from llama_nb.train.optimizer import adamw, schedule
from llama_nb.train.step import Recipe, train_step

__all__ = ["Recipe", "adamw", "schedule", "train_step"]
