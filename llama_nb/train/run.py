"""A run: from a corpus to a trained model, in a folder that survives being killed."""

import dataclasses
import fcntl
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from llama_nb import disk, sharding
from llama_nb.config import LlamaConfig
from llama_nb.data import Batches, Place
from llama_nb.errors import InputError, LlamaError
from llama_nb.model import Llama, params_of
from llama_nb.sharding import Layout
from llama_nb.train.checkpoints import Checkpoints
from llama_nb.train.optimizer import adamw
from llama_nb.train.step import Recipe, train_step


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
    ):
        if config.context < settings.T:
            raise InputError(
                f"rows of {settings.T} tokens are longer than this model's context of "
                f"{config.context}."
            )
        if layout is not None:
            sharding.check(config, layout, settings.batch)
        self.folder, self.config, self.settings = Path(folder), config, settings
        self.layout, self.save_every = layout, save_every
        self.optimizer = adamw(
            settings.peak,
            settings.steps,
            settings.warmup,
            end=settings.end,
            decay=settings.decay,
            clip=settings.clip,
        )
        self._lock: int | None = _claim(self.folder)
        try:
            self._identify(resume)
            self._load(documents, keep)
        except BaseException:
            os.close(self._lock)
            raise

    def _load(self, documents: Any, keep: int) -> None:
        """Make the weights, or read what was saved last."""
        config, settings, layout = self.config, self.settings, self.layout
        self.params = _weights(config, settings.seed, layout)
        self.state = jax.jit(self.optimizer.init)(self.params)
        self.step, place = 0, Place()
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep)
        newest = self.checkpoints.latest()
        if newest is not None:
            (self.params, self.state), place = self.checkpoints.restore(
                newest, (self.params, self.state)
            )
            self.step = newest
        self._cut_log()
        self.batches = Batches(
            documents, settings.batch, settings.T, seed=settings.seed, place=place
        )

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Yield a row of numbers per step, once it is done.

        Raises
        ------
        DivergedError
            When a loss is no number: nothing is saved from there on.
        """
        settings, tokens = self.settings, self.settings.batch * self.settings.T
        log = (self.folder / "log.jsonl").open("a", encoding="utf-8")
        try:
            with log:
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
                    )
                    row = {name: float(number) for name, number in numbers.items()}
                    self.step += 1
                    if not math.isfinite(row["loss"] + row["norm"]):
                        raise DivergedError(
                            f"step {self.step}: the loss is {row['loss']} and the length of the "
                            f"gradient {row['norm']}; the last checkpoint is of step "
                            f"{self.checkpoints.latest() or 0}. Try a lower learning rate."
                        )
                    seconds = time.perf_counter() - start
                    row = {"step": self.step, **row, "tokens_per_s": tokens / seconds}
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                    if self.step % self.save_every == 0 or self.step == settings.steps:
                        self._save()
                    yield row
        finally:
            self.close()

    def close(self) -> None:
        """Finish writing, and leave the folder to others; the end of an iteration does so, too."""
        if self._lock is not None:
            self.checkpoints.close()
            os.close(self._lock)
            self._lock = None

    def _placed(self, batch: Any) -> Any:
        if self.layout is None:
            return batch

        def put(x: np.ndarray) -> jax.Array:
            return jax.device_put(x, self.layout.sharding(x.shape, ("batch", None)))

        return jax.tree.map(put, batch)

    def _save(self) -> None:
        try:
            self.checkpoints.save(self.step, (self.params, self.state), self.batches.place)
        except OSError as error:
            if not disk.is_full(error):
                raise
            raise InputError(
                f"no room for the checkpoint of step {self.step} in {self.folder}; what was saved "
                "before is whole. Make room and go on with --resume."
            ) from None

    def _identify(self, resume: bool) -> None:
        """See that the folder is this run's, or nobody's."""
        what = {
            "config": dataclasses.asdict(self.config),
            "settings": dataclasses.asdict(self.settings),
        }
        what = json.loads(json.dumps(what))
        page = self.folder / "run.json"
        if page.exists():
            if not resume:
                raise InputError(
                    f"{self.folder} holds a run already; go on with --resume, or choose another "
                    "folder."
                )
            known = json.loads(page.read_text(encoding="utf-8"))
            for part, values in what.items():
                for name, value in values.items():
                    if known[part].get(name) != value:
                        raise InputError(
                            f"{self.folder} is a run with {part}.{name} = {known[part].get(name)}, "
                            f"and {value} was asked for."
                        )
        elif any(path.name != ".lock" for path in self.folder.iterdir()):
            raise InputError(f"{self.folder} is not empty, and holds no run.")
        else:
            part = page.with_suffix(".part")
            part.write_text(json.dumps(what, indent=1), encoding="utf-8")
            part.replace(page)

    def _cut_log(self) -> None:
        """Forget what was logged after the checkpoint: it will be computed again."""
        log = self.folder / "log.jsonl"
        if not log.exists():
            return
        lines = log.read_text(encoding="utf-8").splitlines()[: self.step]
        part = log.with_suffix(".part")
        part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        part.replace(log)


def _claim(folder: Path) -> int:
    """Take a folder for this process; what is returned is to be closed."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose a folder for the run.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise InputError(f"{folder} is in use by another run.") from None
    return lock


def _weights(config: LlamaConfig, seed: int, layout: Layout | None) -> Any:
    """Return random weights, each made where it belongs."""

    def make() -> Any:
        return params_of(Llama(config, rngs=nnx.Rngs(seed)))

    if layout is None:
        return jax.jit(make)()
    places = sharding.param_shardings(config, layout.mesh, layout.strategy)

    def place(path: Any, _: Any) -> Any:
        return places[tuple(getattr(key, "key", getattr(key, "idx", None)) for key in path)]

    shapes = jax.eval_shape(make)
    return jax.jit(make, out_shardings=jax.tree_util.tree_map_with_path(place, shapes))()
