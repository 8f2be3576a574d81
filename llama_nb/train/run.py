"""A run: from a corpus to a trained model, in a folder that survives being killed."""

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llama_nb import disk, roofline, sharding
from llama_nb.config import LlamaConfig
from llama_nb.data import Batches, Place
from llama_nb.data.tokens import fingerprint_of
from llama_nb.errors import InputError, LlamaError
from llama_nb.sharding import Layout
from llama_nb.train import start as starts
from llama_nb.train.checkpoints import Checkpoints
from llama_nb.train.folder import LOG, claim, cut_log, identify
from llama_nb.train.optimizer import adamw, schedule
from llama_nb.train.scores import Score, evaluate
from llama_nb.train.step import Recipe, train_step
from llama_nb.train.tuning import Full, Kind, combine, merge


class DivergedError(LlamaError, FloatingPointError):
    """The loss is no number any more."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What makes two runs the same run.

    Attributes
    ----------
    steps, batch, T
        Length of the run, rows of a batch, tokens of a row.
    peak, warmup, end, decay, clip
        As in `optimizer.adamw`.
    seed
        Of weights and of the order of the documents.
    recipe
        How a step computes.
    """

    steps: int
    batch: int = 8
    T: int = 256
    peak: float = 1e-3
    warmup: int = 20
    end: float = 0.1
    decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    recipe: Recipe = dataclasses.field(default_factory=Recipe)

    def __post_init__(self):
        if self.batch < 1 or self.batch % self.recipe.accumulate:
            raise InputError(
                f"a batch of {self.batch} can't be computed in {self.recipe.accumulate} parts."
            )
        schedule(self.peak, self.steps, self.warmup, self.end)
        if not (self.decay >= 0 and self.clip > 0):
            raise InputError(
                f"decay is {self.decay} and clip {self.clip}; decay can't be below 0, and the "
                "longest gradient must be above 0."
            )


class Run:
    """A run in a folder: `run.json` says what it is, `log.jsonl` has a line per step.

    Parameters
    ----------
    folder
        New or empty; with `resume` that of an earlier run with the same settings.
    config
        The model's shape.
    documents
        As `data.Batches` takes them.
    settings
        The rest.
    layout
        How weights and batches lie on a mesh. Runs can change their mesh when they are resumed.
    save_every, keep
        Steps between checkpoints, and how many of the last are kept.
    resume
        Go on from the newest checkpoint, or from the beginning if there is none.
    start
        Weights to start from (`model.params_of`), rather than random ones. They are kept as they
        are; the run trains a copy.
    tune
        What is trained: `tuning.Full()`, the default, `Norms()` or `Lora(...)`. Only that is in
        the checkpoints.
    held
        Documents that are kept apart: the loss on them is computed and logged with every
        checkpoint.
    peak_flops
        What the devices together can do in a second, to log which share of it was used.

    Raises
    ------
    LlamaError
        In one sentence, when the folder or the settings don't allow it.
    """

    def __init__(
        self,
        folder: str | Path,
        config: LlamaConfig,
        documents: Any,
        settings: Settings,
        *,
        layout: Layout | None = None,
        save_every: int = 100,
        keep: int = 3,
        resume: bool = False,
        start: Any = None,
        tune: Kind | None = None,
        held: Any = None,
        peak_flops: float | None = None,
    ):
        if save_every < 1 or keep < 1:
            raise InputError(
                f"a checkpoint every {save_every} steps, {keep} of them kept: both must be 1 or "
                "more."
            )
        if config.context < settings.T:
            raise InputError(
                f"rows of {settings.T} tokens are longer than this model's context of "
                f"{config.context}."
            )
        if layout is not None:
            sharding.check(config, layout, settings.batch)
        starts.check(config, start, tune or Full())
        self.folder, self.config, self.settings = Path(folder), config, settings
        self.layout, self.save_every, self.tune = layout, save_every, tune or Full()
        self.held, self.peak_flops = held, peak_flops
        self.rate = schedule(settings.peak, settings.steps, settings.warmup, settings.end)
        self.optimizer = adamw(
            settings.peak,
            settings.steps,
            settings.warmup,
            end=settings.end,
            decay=settings.decay,
            clip=settings.clip,
        )
        self._lock: int | None = claim(self.folder)
        try:
            with self._room():
                identify(self.folder, self._page(start, documents), resume)
                self._load(documents, keep, start)
        except BaseException:
            os.close(self._lock)
            raise

    def _load(self, documents: Any, keep: int, start: Any) -> None:
        """Make the weights, or read what was saved last."""
        config, settings, layout = self.config, self.settings, self.layout
        self.params, self.frozen = starts.begin(config, start, self.tune, settings.seed, layout)
        self.state = jax.jit(self.optimizer.init)(self.params)
        self.step, place = 0, Place()
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep)
        newest = self.checkpoints.latest()
        if newest is not None:
            (self.params, self.state), place = self.checkpoints.restore(
                newest, (self.params, self.state)
            )
            self.step = newest
        cut_log(self.folder, self.step)
        self.batches = Batches(
            documents, settings.batch, settings.T, seed=settings.seed, place=place
        )

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Yield a row of numbers per step, once it is done.

        `step` counts from 1; `loss` (nats per token), `norm` of the gradient and `tokens` that
        counted are `train_step`'s; `lr` is the learning rate; `seconds` and `tokens_per_s` say how
        fast it went. `mfu` is the share of `peak_flops` that the step's products took, recomputed
        ones not counted; `held` the loss on what was held back, where it was computed.

        Raises
        ------
        DivergedError
            When a loss is no number: nothing is saved from there on.
        """
        settings, tokens = self.settings, self.settings.batch * self.settings.T
        work = self._flops()
        try:
            with self._room(), (self.folder / LOG).open("a", encoding="utf-8") as log:
                while self.step < settings.steps:
                    start = time.perf_counter()
                    batch = self._placed(next(self.batches))
                    self.params, self.state, numbers = train_step(
                        self.params,
                        self.state,
                        batch,
                        config=self.config,
                        optimizer=self.optimizer,
                        layout=self.layout,
                        recipe=settings.recipe,
                        frozen=self.frozen,
                    )
                    row = {name: float(number) for name, number in numbers.items()}
                    row["lr"] = float(self.rate(self.step))
                    self.step += 1
                    if not math.isfinite(row["loss"] + row["norm"]):
                        raise DivergedError(
                            f"step {self.step}: the loss is {row['loss']} and the length of the "
                            f"gradient {row['norm']}; the last checkpoint is of step "
                            f"{self.checkpoints.latest() or 0}. Try a lower learning rate."
                        )
                    seconds = time.perf_counter() - start
                    row |= {"seconds": seconds, "tokens_per_s": tokens / seconds}
                    if self.peak_flops:
                        row["mfu"] = work / seconds / self.peak_flops
                    save = self.step % self.save_every == 0 or self.step == settings.steps
                    if save and self.held is not None:
                        row["held"] = self.score().loss
                    row = {"step": self.step, **row}
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                    self.checkpoints.check()
                    if save:
                        self.checkpoints.save(
                            self.step, (self.params, self.state), self.batches.place
                        )
                    yield row
        finally:
            self.close()

    def score(self) -> Score:
        """Return the model's score on what was held back."""
        return evaluate(
            combine(self.params, self.frozen),
            self.config,
            self.held,
            batch=self.settings.batch,
            T=self.settings.T,
            layout=self.layout,
            recipe=self.settings.recipe,
        )

    def weights(self) -> Any:
        """Return plain weights of the whole model, to save, evaluate or generate with.

        What was trained is copied: the next step gives its memory away.
        """
        mine = jax.tree.map(jax.numpy.copy, self.params)
        return merge(combine(mine, self.frozen))

    def close(self) -> None:
        """Finish writing, and leave the folder to others; the end of an iteration does so, too."""
        if self._lock is None:
            return
        try:
            with self._room():
                self.checkpoints.close()
        finally:
            os.close(self._lock)
            self._lock = None

    def _placed(self, batch: Any) -> Any:
        largest = max(batch.tokens.max(), batch.targets.max())
        if largest >= self.config.vocab_size:
            raise InputError(
                f"the documents have token {largest}, and this model's vocabulary ends at "
                f"{self.config.vocab_size - 1}; tokenize them with the model's own tokenizer."
            )
        if self.layout is None:
            return batch

        def put(x: np.ndarray) -> jax.Array:
            return jax.device_put(x, self.layout.sharding(x.shape, ("batch", None)))

        return jax.tree.map(put, batch)

    def _room(self) -> contextlib.AbstractContextManager[None]:
        return disk.room(
            f"there is no room left in {self.folder}; what was saved there before is whole. Make "
            "room and go on with --resume."
        )

    def _flops(self) -> float:
        """Return the FLOPs of a step's products, each counted once."""
        full = roofline.train_flops(self.config, self.settings.batch, self.settings.T)
        # Weights that are kept have no gradient; what goes through them has.
        return full if isinstance(self.tune, Full) else full * 2 / 3

    def _page(self, start: Any, documents: Any) -> dict[str, Any]:
        """Return what makes this run this run."""
        return {
            "config": dataclasses.asdict(self.config),
            "settings": dataclasses.asdict(self.settings),
            "documents": fingerprint_of(documents),
            "tune": {
                "kind": type(self.tune).__name__.lower(),
                **dataclasses.asdict(self.tune),
                "start": None if start is None else starts.fingerprint(start),
            },
        }
