"""The exceptions of the project: one small tree, each also an instance of the built-in that fits."""

from pyadjoint.checkpointing import CheckpointError


class PyadjointUtilsError(Exception):
    """Base of every error that this project raises on purpose."""


class ArgumentTypeError(PyadjointUtilsError, TypeError):
    """An argument has a type that the operation cannot take."""


class ArgumentValueError(PyadjointUtilsError, ValueError):
    """An argument has the right type and a wrong value, shape or dtype."""


class NotDifferentiableError(PyadjointUtilsError, TypeError):
    """A derivative was asked for that does not exist or that nobody has a rule for."""


class NotLinearError(NotDifferentiableError):
    """A program that was said to be linear is not."""


class ImmutableError(PyadjointUtilsError, TypeError):
    """A value on the tape was asked to change in place."""


class CapturedValueError(PyadjointUtilsError, TypeError):
    """An overloaded function uses a taped value that was not passed to it."""


class MissingEngineError(PyadjointUtilsError, ImportError):
    """An engine is not installed, or what answers to its name is something else."""


class StaleTapeError(PyadjointUtilsError, RuntimeError):
    """A value on the tape does not belong to the evaluation that asks for it."""


class ScheduleError(PyadjointUtilsError, CheckpointError):
    """A schedule and the time loop that was recorded under it do not fit."""


class SnapshotError(PyadjointUtilsError, OSError):
    """A snapshot cannot be written to disk or read from it."""


class UnsupportedError(PyadjointUtilsError, NotImplementedError):
    """A feature that exists elsewhere is refused here, with the reason."""


class RemovedOptionError(PyadjointUtilsError, TypeError):
    """An option of CRIKit's predecessor that has no meaning any more."""
