"""Learning, from a step to a run that survives being killed.

    optimizer    AdamW, its schedule, what decays
    tuning       what is trained: everything, the norms, or adapters
    step         loss, gradients and update, as one program
    scores       perplexity, and bits per byte
    start        what a run starts from
    checkpoints  the last few states of a run, written in the background
    folder       whose a run's folder is
    run          a run in a folder, which goes on where it was stopped
    live         its loss, drawn while it runs

Weights, moments and sums are float32; products may be bfloat16.
"""

from llama_nb.train.optimizer import adamw, schedule
from llama_nb.train.scores import Score, evaluate
from llama_nb.train.step import Recipe, train_step

__all__ = ["Recipe", "Score", "adamw", "evaluate", "schedule", "train_step"]
