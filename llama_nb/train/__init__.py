"""Learning.

optimizer   AdamW, its schedule, what decays
step        loss, gradients and update, as one program
"""

from llama_nb.train.optimizer import adamw, schedule
from llama_nb.train.scores import Score, evaluate
from llama_nb.train.step import Recipe, train_step

__all__ = ["Recipe", "Score", "adamw", "evaluate", "schedule", "train_step"]
