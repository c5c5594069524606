"""Functions of NumPy arrays inside of compiled JAX programs, which may even use JAX themselves."""

import functools
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.ffi
import numpy as np
from jax.interpreters import mlir
from jaxlib import xla_client

Host = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]

_TARGETS = {
    "cpu": "xla_ffi_python_cpu_callback",
    "cuda": "xla_ffi_python_gpu_callback",
    "rocm": "xla_ffi_python_gpu_callback",
}


class _Thread(threading.local):
    """This thread, as JAX programs see it.

    Attributes:
        inside: whether it runs a function that a JAX program called.
    """

    inside = False


this_thread = _Thread()


@functools.cache
def _device() -> Any:
    """A CPU device with threads of its own, where every program is run by the thread that calls it.

    A program on JAX's own CPU device would wait for threads that wait for the function which called it.
    """
    client: Any = xla_client.make_cpu_client(asynchronous=False)
    return client.local_devices()[0]


def movable(array: Any) -> Any:
    """Return an array of JAX that programs can use which a function called from a JAX program runs."""
    # What is committed to JAX's own CPU device would make the program run there.
    return np.asarray(array) if getattr(array, "committed", False) and _device() not in array.devices() else array


def emit(ctx: Any, operands: Sequence[Any], host: Host, name: str) -> Any:
    """Lower a call of a function of NumPy arrays, for ``jax.interpreters.mlir.register_lowering``.

    Unlike ``jax.pure_callback`` it hands over NumPy views of the program's own buffers, so that JAX is asked for nothing on
    the way, and keeps 64-bit results where 64-bit types are only on in a scope.

    Args:
        ctx: the lowering context.
        operands: the operands.
        host: takes and returns NumPy arrays.
        name: the function's name for messages.
    """
    shapes = [(aval.shape, aval.dtype) for aval in ctx.avals_out]

    def call(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        was_inside, this_thread.inside = this_thread.inside, True
        try:
            with jax.default_device(_device()):
                results = host(arrays)
            return tuple([_exactly(y, *shape) for y, shape in zip(results, shapes, strict=True)])
        except Exception as error:
            # XLA passes on text alone.
            raise RuntimeError(
                f"{name} failed in a JAX program:\n{''.join(traceback.format_exception(error))}"
            ) from error
        finally:
            this_thread.inside = was_inside

    platform = ctx.module_context.platforms[0]
    if platform not in _TARGETS:
        return mlir.emit_python_callback(
            ctx, call, None, list(operands), ctx.avals_in, ctx.avals_out, has_side_effect=False
        )[0]
    ctx.module_context.add_host_callback(call)
    index = np.uint64(len(ctx.module_context.host_callbacks) - 1)
    lower = jax.ffi.build_ffi_lowering_function(_TARGETS[platform], has_side_effect=False)
    return lower(ctx, *operands, index=index).results


def _exactly(array: np.ndarray, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if array.shape != shape:
        raise ValueError(f"a result has the shape {array.shape} where {shape} was expected")
    return np.asarray(array, dtype, order="C")
