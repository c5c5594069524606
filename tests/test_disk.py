"""Snapshots on disk: every dtype, whole files or none, nothing left behind, and errors that leave the tape usable."""

import builtins
import errno
import gc
import os
import shutil
import subprocess
import sys

import checkpoint_schedules as cs
import numpy as np
import pytest
from toy_engine import asnumpy, overload_toy, toy

from pyadjoint_utils import (
    ArgumentValueError,
    Control,
    ReducedFunctional,
    SnapshotError,
    Tape,
    array,
    get_engine,
    set_working_tape,
)
from pyadjoint_utils.checkpointing.disk import Disk, Stored

STEPS = 8
A, P = np.array([0.5, -1.0]), np.array([0.7, 0.2])
step = overload_toy(lambda y: y - 0.1 * y * y)
total = overload_toy(lambda y: (y * y).sum())


def recorded(schedule, **options):
    with set_working_tape(Tape()) as tape:
        if schedule is not None:
            tape.enable_checkpointing(schedule, **options)
        y = x = toy(A)
        for _ in tape.timestepper(range(STEPS)):
            y = step(y)
        return tape, ReducedFunctional(total(y), Control(x))


def expected():
    _, rf = recorded(None)
    rf(toy(P))
    return asnumpy(rf.derivative())


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_files_are_in_the_users_folder_and_go_with_the_tape(tmp_path):
    tape, rf = recorded(cs.SingleDiskStorageSchedule(), directory=tmp_path)
    rf(toy(P))
    written = files(tmp_path)
    assert (
        len(written) == STEPS
    )  # the state of each step but the first, which is the control, and the last one's result
    assert all(path.suffix == ".npy" for path in written)
    assert all(np.load(path, allow_pickle=False).shape == (2,) for path in written)
    np.testing.assert_allclose(asnumpy(rf.derivative()), expected())
    tape.clear_tape()
    assert not list(tmp_path.iterdir())


def test_files_go_when_the_tape_goes(tmp_path):
    tape, rf = recorded(cs.HRevolve(STEPS, 1, 3), directory=tmp_path)
    rf(toy(P))
    rf.derivative()
    del tape, rf
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_files_go_when_the_process_ends(tmp_path):
    program = f"""
import checkpoint_schedules as cs
from pyadjoint_utils import array, get_working_tape
tape = get_working_tape()
tape.enable_checkpointing(cs.SingleDiskStorageSchedule(), directory={str(tmp_path)!r})
y = array([1.0, 2.0])
for _ in tape.timestepper(range(5)):
    y = y * y
import pathlib
print(len([p for p in pathlib.Path({str(tmp_path)!r}).rglob("*.npy")]))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) > 2
    assert not list(tmp_path.iterdir())


FORKED = """
import os, sys
import checkpoint_schedules as cs
import numpy as np
from pyadjoint_utils import Control, ReducedFunctional, array, get_working_tape

tape = get_working_tape()
tape.enable_checkpointing(cs.SingleDiskStorageSchedule(), directory=sys.argv[1])
x = y = array([1.0, 2.0])
for _ in tape.timestepper(range(5)):
    y = y * y
rf = ReducedFunctional(y.sum(), Control(x))

def check(m):
    np.testing.assert_allclose(rf.derivative().numpy(), 32 * m**31)

mine, its = np.array([0.9, 1.1]), np.array([0.8, 1.2])
rf(mine)
if child := os.fork():
    _, status = os.waitpid(child, 0)
    assert status == 0
    check(mine)
else:
    check(mine)
    rf(its)
    check(its)
    tape.clear_tape()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes of this system do not fork")
def test_a_forked_process_leaves_the_files_of_its_parent_alone(tmp_path):
    subprocess.run([sys.executable, "-c", FORKED, tmp_path], check=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128", "int32", "bool", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 2)])
@pytest.mark.parametrize("name", ["numpy", "jax", "torch", "tensorflow"])
def test_every_dtype_and_shape_is_kept(name, shape, dtype, tmp_path):
    if name != "numpy":
        pytest.importorskip(name)
    engine = get_engine(name)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    data = (np.arange(6.0)[: int(np.prod(shape))] * 1.5 - 2).reshape(shape)
    data = data.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    value = engine.enter(np.asarray(data * (1 + 2j)) if dtype.startswith("complex") else data)
    disk = Disk(tmp_path)
    stored = disk.store(value, engine)
    assert isinstance(stored, Stored)
    again = stored.read()
    assert type(again) in engine.array_types
    assert engine.aval(again) == engine.aval(value)
    assert engine.to_numpy(again).tobytes() == engine.to_numpy(value).tobytes()
    assert len(files(tmp_path)) == 1
    del stored
    assert not files(tmp_path)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(ArgumentValueError, match="existing folder"):
        Tape().enable_checkpointing(cs.SingleDiskStorageSchedule(), directory=tmp_path / "none")


class FullDisk:
    """A file on a disk that becomes full."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()

    def write(self, data):
        self._file.write(data[:4])
        raise OSError(errno.ENOSPC, "No space left on device")


def full(path, mode="r", *args, real=open, **kwargs):
    file = real(path, mode, *args, **kwargs)
    return FullDisk(file) if "w" in mode and str(path).endswith(".part") else file


@pytest.mark.parametrize(
    "schedule", [cs.SingleDiskStorageSchedule, lambda: cs.MultistageCheckpointSchedule(STEPS, 0, 3)]
)
def test_a_full_disk(schedule, tmp_path, monkeypatch, caplog):
    _, rf = recorded(schedule(), directory=tmp_path)
    rf(toy(A))
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", full)
        with pytest.raises(SnapshotError, match=r"No space left.*directory="):
            rf(toy(P))
        with pytest.raises(OSError, match="No space left"):
            rf.hessian(toy(P))
        assert not [path for path in files(tmp_path) if path.suffix == ".part"]
    rf(toy(P))
    np.testing.assert_allclose(asnumpy(rf.derivative()), expected())


def test_a_disk_that_is_full_while_the_program_runs(tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", full)
        _, rf = recorded(cs.SingleDiskStorageSchedule(), directory=tmp_path)
        assert "No space left" in caplog.text
        with pytest.raises(SnapshotError, match="No space left"):
            rf.derivative()
    _, plain = recorded(None)
    np.testing.assert_allclose(asnumpy(rf.derivative()), asnumpy(plain.derivative()))


@pytest.mark.parametrize("harm", ["remove", "shorten"])
def test_a_missing_or_damaged_file(harm, tmp_path):
    _, rf = recorded(cs.SingleDiskStorageSchedule(), directory=tmp_path)
    rf(toy(P))
    for path in files(tmp_path):
        if harm == "remove":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(SnapshotError, match=r"\.npy.*cannot be read.*anew"):
        rf.derivative()
    np.testing.assert_allclose(asnumpy(rf.derivative()), expected())


def test_a_folder_that_somebody_removed_is_made_again(tmp_path):
    _, rf = recorded(cs.SingleDiskStorageSchedule(), directory=tmp_path)
    rf(toy(P))
    for folder in tmp_path.iterdir():
        shutil.rmtree(folder)
    with pytest.raises(SnapshotError, match=r"\.npy.*cannot be read.*anew"):
        rf.derivative()
    np.testing.assert_allclose(asnumpy(rf.derivative()), expected())
    assert files(tmp_path)


def test_a_value_that_lasts_many_steps_is_written_once(tmp_path):
    with set_working_tape(Tape()) as tape:
        tape.enable_checkpointing(cs.MultistageCheckpointSchedule(STEPS, 0, 4), directory=tmp_path)
        x = array(A)
        y, early = x, None
        for n in tape.timestepper(range(STEPS)):
            y = y * 0.9 if early is None else y * early
            early = y if n == 0 else early
        ReducedFunctional((y * y).sum(), Control(x))(array(P))
    # Snapshots at steps 0 (the control alone) and three later ones: a state in each, and the early value once.
    assert len(files(tmp_path)) <= 4


def test_an_array_on_another_device_stays_in_memory_and_the_log_says_so(tmp_path, caplog):
    torch = pytest.importorskip("torch")
    disk, engine = Disk(tmp_path), get_engine("torch")
    elsewhere = torch.empty(2, device="meta")
    for _ in range(2):
        assert disk.store(elsewhere, engine) is elsewhere
    assert not files(tmp_path)
    (record,) = caplog.records
    assert "float32[2] on the device meta stays in memory" in record.message
    assert isinstance(disk.store(torch.ones(2), engine), Stored)
