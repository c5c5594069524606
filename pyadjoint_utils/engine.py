"""What an engine is: arrays in and out, and three maps from function to function.

An engine differentiates *maps*. A map is a function ``f(x, c) -> y`` of two tuples of the engine's arrays, inputs that
are differentiated and constants, that returns a tuple of arrays. :meth:`Engine.vjp_of` and :meth:`Engine.jvp_of` turn a
map into another map of the same engine, so that they compose to any order; :meth:`Engine.compile` makes a map fast.
Everything else (the Hessian piece, zeros, accumulation, the tape) is the core's.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import optree

from pyadjoint_utils.errors import ArgumentValueError, NotDifferentiableError

Arrays = tuple[Any, ...]
Map = Callable[[Arrays, Arrays], Arrays]


class Aval(NamedTuple):
    """Shape and dtype of an array, whichever engine owns it."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def differentiable(self) -> bool:
        """Whether the dtype is a floating or complex one (``V`` holds bfloat16 and its kin)."""
        return self.dtype.kind in "fcV"

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Work(NamedTuple):
    """How much there is to compile in a function.

    Attributes:
        operations: how many operations it does.
        shifts: how many of them move entries of an array to other places, as stencils do.
    """

    operations: int
    shifts: int


class CannotCompile(Exception):
    """A compiler cannot take a map, which runs as it is then; the text says why."""


class Engine:
    """Contract of an engine; a bridge subclasses it once and registers one instance.

    Attributes:
        name: the engine's name in the registry, for example ``"jax"``.
        array_types: the exact classes of the concrete arrays that it owns.
        tracer_types: exact classes of arrays in its transformations, beside those, where functions run again and again.
        holds: name of the engine that owns the arrays this engine computes on; only an engine that differentiates
            another one's arrays (autograd those of NumPy) says something else than its own name.
    """

    name: str = ""
    # Whether compile() traces a function once, which ``jit=False`` may switch off; where it only guards, it stays on.
    traces = False
    # Whether derivatives are taken of the traced function also where ``jit=False``, since what leaves the engine on the
    # way would be dropped without a word otherwise.
    traces_derivatives = False
    array_types: tuple[type, ...] = ()
    tracer_types: tuple[type, ...] = ()
    holds: str = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.holds = cls.__dict__.get("holds") or cls.name

    # Arrays in and out -----------------------------------------------------------------------------------------------

    def enter(self, source: Any, dtype: np.dtype | None = None) -> Any:
        """Make an array of this engine out of a NumPy array or an exported array, without a copy where memory allows.

        Args:
            source: a :class:`numpy.ndarray`, or what another engine's :meth:`export` returned.
            dtype: the dtype to have, or None to keep the source's.
        """
        raise NotImplementedError

    def enter_all(self, sources: Sequence[np.ndarray]) -> list[Any]:
        """Make own arrays out of NumPy arrays, at once where that costs less than :meth:`enter` for each of them."""
        return [self.enter(source) for source in sources]

    def argument(self, source: np.ndarray, dtype: np.dtype) -> Any:
        """Return a NumPy array as a compiled map takes it for one call: as :meth:`enter`, or in whatever form costs less.

        What is done to the source afterwards changes nothing, even while the call still runs.
        """
        return self.enter(source, dtype)

    def export(self, array: Any) -> Any:
        """Return an alias of an own array that is safe to read through ``__dlpack__``; it may be NumPy's."""
        return array

    def to_numpy(self, array: Any) -> np.ndarray:
        """Return an own array as a NumPy array, a view where memory allows."""
        raise NotImplementedError

    def aval(self, array: Any) -> Aval:
        """Return shape and NumPy dtype of an own array."""
        return Aval(tuple(array.shape), np.dtype(array.dtype))

    def copy(self, array: Any) -> Any:
        """Return an own array that nobody else can write to; immutable arrays return themselves."""
        return array

    def cast(self, array: Any, dtype: np.dtype) -> Any:
        """Return an own array with another dtype."""
        return self.enter(self.to_numpy(array).astype(dtype))

    def number(self, value: complex, dtype: np.dtype) -> Any:
        """Return a Python number as this engine takes an undifferentiated one beside its arrays."""
        return self.enter(np.asarray(value, dtype))

    def add(self, a: Any, b: Any) -> Any:
        """Return the sum of two own arrays of one shape and dtype, out of place."""
        return operator.add(a, b)

    def scale(self, array: Any, factor: complex) -> Any:
        """Return an own array times a Python number, in the array's dtype."""
        return array * factor

    def zeros(self, aval: Aval, like: Any = None) -> Any:
        """Return an array of zeros, on the device of an own array if one is given."""
        return self.enter(np.zeros(aval.shape, aval.dtype))

    def beside(self, array: Any, like: Any) -> Any:
        """Return an own array on the device of another own one; needed where the engine does not move them itself."""
        return array

    def is_tracer(self, leaf: Any) -> bool:
        """Whether a leaf is a value of a transformation that is running (then an overloaded function just runs)."""
        return False

    # Containers ------------------------------------------------------------------------------------------------------

    def flatten(self, tree: Any) -> tuple[list[Any], Any]:
        """Flatten nested containers into leaves and a hashable structure; None belongs to the structure."""
        # A namespace of our own: PyTorch changes, for the whole process, the order of dicts in the namespace "torch".
        return optree.tree_flatten(tree, namespace=f"pyadjoint_utils.{self.name}")

    def unflatten(self, structure: Any, leaves: Sequence[Any]) -> Any:
        """Undo :meth:`flatten`."""
        return optree.tree_unflatten(structure, leaves)

    # Maps ------------------------------------------------------------------------------------------------------------

    def vjp_of(self, f: Map, n: int) -> Map:
        """Return the map ``((*x, *yb), c) -> xb`` with ``xb = J(x)^H yb`` for ``Re<a, b>``; ``x`` has ``n`` arrays.

        The result is a map of this engine again. Inputs that an output does not depend on get zeros, never None.
        """
        raise NotDifferentiableError(f"The engine {self.name!r} has no derivative rules (vjp_of).")

    def jvp_of(self, f: Map, n: int) -> Map:
        """Return the map ``((*x, *dx), c) -> (*y, *dy)`` with ``dy = J(x) dx``; a map of this engine again."""
        raise NotDifferentiableError(f"The engine {self.name!r} has no derivative rules (jvp_of).")

    def hvp_of(self, f: Map, n: int, m: int) -> Map:
        """Return the map ``((*x, *yb, *dx, *dyb), c) -> (*xb, *dxb)``: the VJP and its derivative.

        ``x`` has ``n`` arrays and ``yb`` has ``m``. An engine for which there is a shorter way overrides this one.
        """
        return self.jvp_of(self.vjp_of(f, n), n + m)

    def vjp_tangent_of(self, f: Map, n: int, m: int) -> Map:
        """Return the map ``((*x, *dx), (*yb, *c)) -> dxb``: the derivative of the VJP along ``dx`` alone."""
        vjp = self.vjp_of(f, n)
        both = self.jvp_of(lambda x, c: vjp((*x, *c[:m]), c[m:]), n)
        return lambda x, c: both(x, c)[n:]

    def batch_of(self, f: Map, batched: Sequence[bool]) -> Map:
        """Return ``f`` over a leading axis of the inputs that are marked, and of all outputs; a map of this engine again.

        An engine that can do the whole axis at once overrides this loop.
        """
        getitem, stack = self._row_functions()

        def loop(x: Arrays, c: Arrays) -> Arrays:
            size = self.aval(next(a for a, marked in zip(x, batched, strict=True) if marked)).shape[0]
            results = [
                f(tuple([getitem(a, k) if marked else a for a, marked in zip(x, batched, strict=True)]), c)
                for k in range(size)
            ]
            return tuple([stack(list(outputs)) for outputs in zip(*results, strict=True)])

        return loop

    def dependencies_of(self, f: Map, x: Sequence[Aval], c: Sequence[Any], n: int) -> Any | None:
        """Return which results of a map depend on which of its inputs, whatever the values are.

        Args:
            f: a map that is linear in ``x[n:]``.
            x: shapes and dtypes of its inputs.
            c: its constants: arrays that are the same in every call, and shapes and dtypes of those that are not.
            n: the inputs before this one are not asked about.

        Returns:
            A boolean :class:`scipy.sparse.csr_array` with a row for each number of the results, one after the other, and a
            column for each number of ``x[n:]``. It is exact or has too many entries, never too few. None if the engine
            cannot tell.
        """
        return None

    def compile(self, f: Map, avals: Sequence[Aval]) -> Map:
        """Return ``f`` prepared for repeated calls on concrete arrays; ``avals`` describe the original function's."""
        return f

    def run(self, f: Map, avals: Sequence[Aval]) -> Map:
        """Return ``f`` as it is called where the user asked for no compilation (``jit=False``)."""
        return f

    def scope(self, functions: Iterable[Sequence[Aval]]) -> AbstractContextManager[Any]:
        """Return a context for many calls in a row, which then need not enter one each.

        Args:
            functions: the inputs of every function that is called in there; nothing else is.
        """
        return nullcontext()

    def checkpoint(self, f: Map) -> Map:
        """Return ``f`` with its intermediate values recomputed, not stored, when it is differentiated."""
        return f

    # Programs of several functions -----------------------------------------------------------------------------------

    # Whether a run of Blocks is merged into one program without being asked for.
    merges = False
    # Whether loop() is one operation of a program, however many turns it has.
    loops = False

    def value_and_vjp_of(self, f: Map, n: int, outs: Sequence[int]) -> Map:
        """Return the map ``((*x, *yb), c) -> (*y, *xb)``: all outputs, and the adjoint of those that ``outs`` names."""
        vjp = self.vjp_of(lambda x, c: tuple([y[k] for y in [f(x, c)] for k in outs]), n)
        return lambda x, c: (*f(x[:n], c), *vjp(x, c))

    def split_vjp_of(self, f: Map, n: int, outs: Sequence[int]) -> tuple[Map, Map] | None:
        """Return two maps that share the work of :meth:`value_and_vjp_of`, for programs whose seeds come later.

        Returns:
            ``(x, c) -> (*y, *kept)``, which returns all outputs and what the other one needs of their computation; and
            ``(yb, (*kept, *x, *c)) -> xb``, for the outputs that ``outs`` names. None if the engine keeps nothing.
        """
        return None

    def inlined(self, f: Callable[[Arrays], Arrays], avals: Sequence[Aval]) -> Callable[[Arrays], Arrays]:
        """Return a flat function as it is called inside of a program; ``avals`` are those of its inputs and outputs."""
        return f

    def stop(self, array: Any) -> Any:
        """Return an array of a program as a constant: no derivative of any order passes it."""
        raise NotDifferentiableError(f"The engine {self.name!r} cannot stop a derivative inside of a program (stop).")

    def loop(
        self,
        body: Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]],
        carry: Arrays,
        constants: Arrays,
        rows: Arrays,
        length: int,
        *,
        remake: bool = False,
    ) -> tuple[Arrays, Arrays]:
        """Run ``carry, y = body(carry, constants, row)`` over the leading axis of ``rows``, inside of a program.

        Args:
            body: a function of tuples of arrays.
            carry: what the body hands on.
            constants: what is the same in every turn.
            rows: arrays of ``length`` rows.
            length: how many turns.
            remake: recompute what happens inside of the body when differentiating, instead of keeping it.

        Returns:
            The last carry, and every ``y`` stacked along a leading axis.
        """
        getitem, stack = self._row_functions()
        collected = []
        for k in range(length):
            carry, y = body(carry, constants, tuple([getitem(row, k) for row in rows]))
            collected.append(y)
        return carry, tuple([stack(list(y)) for y in zip(*collected, strict=True)])

    def picked(self, array: Any, places: Arrays) -> Any:
        """Return ``array[places]`` for arrays of numbers of the first axes, none negative and all inside of the axis."""
        return self._row_functions()[0](array, places)

    def _row_functions(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        getitem, stack = self.function("getitem"), self.function("stack")
        if getitem is None or stack is None:
            raise NotDifferentiableError(f"The engine {self.name!r} has no 'getitem' and 'stack' to loop over rows.")
        return getitem, stack

    def kept_by_loops(self, memory: str) -> str | None:
        """Return what derivatives of :meth:`loop` keep if that is something else than ``memory=`` says, in words."""
        return None

    def build(self, f: Map, x: Arrays, c: Arrays, avals: Sequence[Aval], work: Work) -> Map:
        """Return ``f`` compiled now, for arrays like these.

        Args:
            f: the map.
            x: its inputs.
            c: its constants.
            avals: every shape and dtype that occurs in it.
            work: what the function that it is derived from does.
        """
        return self.compile(f, avals)

    def outputs_of(self, f: Callable[[Arrays], Arrays], inputs: Sequence[Aval]) -> tuple[Aval, ...]:
        """Return shapes and dtypes of what a function returns; an engine that need not run it for that overrides this."""
        return tuple([self.aval(y) for y in f(tuple([self.zeros(aval) for aval in inputs]))])

    def compiler(self, name: str) -> Any:
        """Return what builds programs in this engine's place where the user asks for it by name.

        Returns:
            An object with :meth:`build`, which may raise :class:`CannotCompile`, and :meth:`seconds`.

        Raises:
            ArgumentValueError: there is none of this name.
        """
        raise ArgumentValueError(
            f"The engine {self.name!r} has no compilers to choose from; got {name!r}. Write engines=[{self.name!r}]."
        )

    def work(self, f: Callable[[Arrays], Arrays], inputs: Sequence[Aval]) -> Work:
        """Return what a function does in one run, for an estimate of how long compiling takes."""
        return Work(1, 0)

    def seconds(self, work: Work, order: int) -> float:
        """Return about how long it takes to compile a program and its derivatives of first or of second order."""
        return 0.0

    # Functions by NumPy's names --------------------------------------------------------------------------------------

    def function(self, name: str) -> Callable[..., Any] | None:
        """Return this engine's function of a NumPy name (``"add"``, ``"linalg.solve"``, ``"getitem"``), or None."""
        return None

    def parameters(self, model: Any) -> Any:
        """Return the trainable parameters of a model of this engine as a container of arrays, or None."""
        return None


class NumPyArrays(Engine):
    """Owner of NumPy arrays: it holds and converts them, and leaves differentiation to another engine."""

    name = "numpy"
    array_types = (np.ndarray,)
    differentiator = "autograd"

    def enter(self, source: Any, dtype: np.dtype | None = None) -> np.ndarray:
        return np.asarray(source, dtype)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array

    def aval(self, array: np.ndarray) -> Aval:
        return Aval(array.shape, array.dtype)

    def copy(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def add(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        # np.add of 0-d arrays returns a scalar.
        return np.asarray(np.add(a, b))

    def scale(self, array: np.ndarray, factor: complex) -> np.ndarray:
        return np.asarray(np.multiply(array, factor, dtype=array.dtype))

    def cast(self, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
        return array.astype(dtype)
