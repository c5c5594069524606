"""Values on disk: a file for each, in a folder that goes when nobody needs it any more."""

import itertools
import logging
import math
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pyadjoint_utils.engine import Aval, Engine
from pyadjoint_utils.errors import ArgumentValueError, SnapshotError

_log = logging.getLogger(__name__)


class Stored:
    """A value in a file, which is removed together with this object.

    Args:
        path: the file.
        size: its length in bytes, of which the last ones are the data.
        engine: the engine of the value.
        aval: shape and dtype of the value.
    """

    def __init__(self, path: Path, size: int, engine: Engine, aval: Aval) -> None:
        self._path, self._size, self._engine, self._aval = path, size, engine, aval
        weakref.finalize(self, _at_home, os.getpid(), path.unlink, missing_ok=True)

    def read(self) -> Any:
        """Return the value, whose memory is that of the file where the engine allows.

        Raises:
            SnapshotError: the file is gone or damaged.
        """
        aval = self._aval
        count = math.prod(aval.shape)
        try:
            with open(self._path, "rb") as file:
                if (size := os.fstat(file.fileno()).st_size) != self._size:
                    raise ValueError(f"it has {size} bytes instead of {self._size}")
                # Copied on write, so that no engine can change the file.
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            bits = np.frombuffer(memory, np.uint8, offset=self._size - count * aval.dtype.itemsize)
        except (OSError, ValueError) as error:
            raise SnapshotError(
                f"The snapshot {self._path} of {aval} cannot be read: {error}. Leave the folder alone while the tape "
                "lives; the next evaluation or derivative writes its snapshots anew."
            ) from error
        return self._engine.enter(bits.view(aval.dtype).reshape(aval.shape))


class Disk:
    """A folder of values; a process that was forked makes one of its own.

    Args:
        directory: where the folder is made when something is stored; None for the system's place for temporary files.
    """

    def __init__(self, directory: Any = None) -> None:
        if directory is not None and not Path(directory).is_dir():
            raise ArgumentValueError(f"directory must be an existing folder; got {directory!r}. Make it first.")
        self._directory = directory
        self._folder: Path | None = None
        self._process = 0  # the one that made the folder
        self._numbers = itertools.count()
        self._devices: dict[str, Any] = {}
        self._said = False

    def store(self, value: Any, engine: Engine) -> Any:
        """Write an array to a file of its own; one that is not where the engine puts new arrays stays as it is.

        Returns:
            A :class:`Stored`, or the value itself.

        Raises:
            SnapshotError: the file cannot be written.
        """
        aval = engine.aval(value)
        if getattr(value, "device", None) != self._device_of(engine):
            self._say_what_stays(value, aval)
            return value
        data = engine.to_numpy(value)
        if data.dtype.kind not in "biufc":  # NumPy's files know no bfloat16 and its kin
            data = data.view(f"u{data.dtype.itemsize}")
        try:
            path = self._made() / f"{next(self._numbers)}.npy"
            size = self._write(path, data)
        except OSError as error:
            raise SnapshotError(
                f"A snapshot of {aval} cannot be written to {self._folder or self._directory or tempfile.gettempdir()}: "
                f"{error.strerror or error}. Make room there, or name another folder: "
                "tape.enable_checkpointing(schedule, directory=...)."
            ) from error
        return Stored(path, size, engine, aval)

    def close(self) -> None:
        """Remove the folder and what is in it."""
        if self._folder is not None:
            _at_home(self._process, shutil.rmtree, self._folder, ignore_errors=True)
            self._folder = None

    def _made(self) -> Path:
        here = os.getpid()
        if self._folder is None or self._process != here or not self._folder.is_dir():
            self._folder = None
            self._folder, self._process = Path(tempfile.mkdtemp(prefix="pyadjoint_utils-", dir=self._directory)), here
            weakref.finalize(self, _at_home, here, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def _device_of(self, engine: Engine) -> Any:
        """The device on which an engine puts what it reads."""
        if engine.name not in self._devices:
            self._devices[engine.name] = getattr(engine.zeros(Aval((), np.dtype(np.float32))), "device", None)
        return self._devices[engine.name]

    def _say_what_stays(self, value: Any, aval: Aval) -> None:
        if not self._said:
            self._said = True
            _log.warning(
                "A snapshot of %s on the device %s stays in memory and is not stored on disk: it would be read to another "
                "device. Compute on the engine's default device, or use snapshots in memory. (Said once.)",
                aval,
                value.device,
            )

    @staticmethod
    def _write(path: Path, data: np.ndarray) -> int:
        """Write by calls that report a full disk (a mapped file would end the process), rename, and return the length."""
        unfinished = path.with_suffix(".part")
        try:
            with open(unfinished, "wb") as file:
                np.save(file, data, allow_pickle=False)
                size = file.tell()
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return size


def _at_home(process: int, remove: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Remove files of this process; those that a forked one knows are its parent's."""
    if os.getpid() == process:
        remove(*args, **kwargs)
