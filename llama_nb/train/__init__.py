"""Learning, from a step to a run that survives being killed.

    optimizer    AdamW, its schedule, what decays
    step         loss, gradients and update, as one program
    scores       perplexity, and bits per byte
    checkpoints  the last few states of a run, written in the background
    run          a run in a folder, which goes on where it was stopped

Weights, moments and sums are float32; products may be bfloat16.
"""

from llama_nb.train.optimizer import adamw, schedule
from llama_nb.train.scores import Score, evaluate
from llama_nb.train.step import Recipe, train_step

__all__ = ["Recipe", "Score", "adamw", "evaluate", "schedule", "train_step"]
