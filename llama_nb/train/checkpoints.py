"""What a run needs to go on: weights, the optimizer's state, and its place in the data."""

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import jax

from llama_nb import disk
from llama_nb.data import Place
from llama_nb.errors import CorruptFileError


class Checkpoints:
    """The last few states of a run, in a folder, written in the background.

    Orbax writes each under another name and renames it when it is whole: one that was cut short is
    not there, and the ones before it are.

    Parameters
    ----------
    folder
        Made if it isn't there.
    keep
        How many of the last are kept.
    """

    def __init__(self, folder: str | Path, keep: int = 3):
        import orbax.checkpoint as ocp

        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._args = ocp.args

    def latest(self) -> int | None:
        """Return the step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, place: Place) -> None:
        """Begin to write a state; it is copied before this returns.

        Raises
        ------
        OSError
            When there is no room for it: before it is begun, or in the words of whoever noticed.
        """
        args = self._args
        self._manager.wait_until_finished()
        if sum(leaf.nbytes for leaf in jax.tree.leaves(state)) > disk.free_bytes(self.folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        self._manager.save(
            step,
            args=args.Composite(
                state=args.StandardSave(state), place=args.JsonSave(dataclasses.asdict(place))
            ),
        )

    def check(self) -> None:
        """Raise what went wrong in the background."""
        self._manager.check_for_errors()

    def restore(self, step: int, like: Any) -> tuple[Any, Place]:
        """Return what was saved.

        Parameters
        ----------
        like
            Arrays, or their shapes, of the same tree; where they lie is where the saved ones go.

        Raises
        ------
        CorruptFileError
            When the checkpoint is of another model, or can't be read.
        """
        args = self._args

        def shape(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

        try:
            found = self._manager.restore(
                step,
                args=args.Composite(
                    state=args.StandardRestore(jax.tree.map(shape, like)), place=args.JsonRestore()
                ),
            )
        except (ValueError, KeyError, FileNotFoundError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise CorruptFileError(
                f"checkpoint {step} in {self.folder} is not of this model, or damaged: {reason}"
            ) from None
        return found["state"], Place(**found["place"])

    def close(self) -> None:
        """Wait until everything is written, or has failed."""
        try:
            self._manager.wait_until_finished()
        finally:
            self._manager.close()
