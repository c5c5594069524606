"""Values on disk: a file for each, in a folder that goes when nobody needs it any more."""

import itertools
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from pyadjoint_utils.engine import Aval, Engine
from pyadjoint_utils.errors import ArgumentValueError, SnapshotError


class Stored:
    """A value in a file, which is removed together with this object.

    Args:
        path: the file.
        engine: the engine of the value.
        aval: shape and dtype of the value.
    """

    def __init__(self, path: Path, engine: Engine, aval: Aval) -> None:
        self._path, self._engine, self._aval = path, engine, aval
        weakref.finalize(self, path.unlink, missing_ok=True)

    def read(self) -> Any:
        """Return the value, whose memory is that of the file where the engine allows.

        Raises:
            SnapshotError: the file is gone or damaged.
        """
        empty = 0 in self._aval.shape  # of which there is no memory to map
        try:
            # Copied on write, so that no engine can change the file.
            data = np.asarray(np.load(self._path, mmap_mode=None if empty else "c", allow_pickle=False))
            if data.shape != self._aval.shape or data.dtype.itemsize != self._aval.dtype.itemsize:
                raise ValueError(f"it holds {data.dtype}{list(data.shape)}")
        except (OSError, ValueError) as error:
            raise SnapshotError(
                f"The snapshot {self._path} of {self._aval} cannot be read: {error}. Leave the folder alone while the tape "
                "lives; the next evaluation or derivative writes its snapshots anew."
            ) from error
        return self._engine.enter(data.view(self._aval.dtype))


class Disk:
    """A folder of values.

    Args:
        directory: where the folder is made when something is stored; None for the system's place for temporary files.
    """

    def __init__(self, directory: Any = None) -> None:
        if directory is not None and not Path(directory).is_dir():
            raise ArgumentValueError(f"directory must be an existing folder; got {directory!r}. Make it first.")
        self._directory = directory
        self._folder: Path | None = None
        self._numbers = itertools.count()

    def store(self, value: Any, engine: Engine) -> Any:
        """Write an array to a file of its own; one that is not where the engine puts new arrays stays as it is.

        Returns:
            A :class:`Stored`, or the value itself.

        Raises:
            SnapshotError: the file cannot be written.
        """
        aval = engine.aval(value)
        here = getattr(engine.zeros(Aval((), aval.dtype)), "device", None)
        if getattr(value, "device", None) != here:
            return value
        data = engine.to_numpy(value)
        if data.dtype.kind not in "biufc":  # NumPy's files know no bfloat16 and its kin
            data = data.view(f"u{data.dtype.itemsize}")
        try:
            path = self._made() / f"{next(self._numbers)}.npy"
            self._write(path, data)
        except OSError as error:
            raise SnapshotError(
                f"A snapshot of {aval} cannot be written to {self._folder or self._directory or tempfile.gettempdir()}: "
                f"{error.strerror or error}. Make room there, or name another folder: "
                "tape.enable_checkpointing(schedule, directory=...)."
            ) from error
        return Stored(path, engine, aval)

    def close(self) -> None:
        """Remove the folder and what is in it."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _made(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="pyadjoint_utils-", dir=self._directory))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    @staticmethod
    def _write(path: Path, data: np.ndarray) -> None:
        """Write by calls that report a full disk (a mapped file would end the process), and rename."""
        unfinished = path.with_suffix(".part")
        try:
            with open(unfinished, "wb") as file:
                np.save(file, data, allow_pickle=False)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
