"""Merged functions of PyTorch as programs of ``torch.compile``."""

import textwrap
import warnings
from collections.abc import Sequence

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyadjoint_utils.engine import Arrays, Aval, CannotCompile, Engine, Map, Work
from pyadjoint_utils.errors import ArgumentValueError, UnsupportedError


class TorchCompiler:
    """Compiles maps with a backend of ``torch.compile``.

    A map is run once as it is, then traced to the operations that it consists of, those of its derivatives included, and
    these are compiled. What depends on the numbers or draws random ones cannot be traced.

    Args:
        engine: prepares maps that are not compiled.
        backend: a name that ``torch.compiler.list_backends()`` lists.

    Raises:
        ArgumentValueError: there is no such backend.
    """

    def __init__(self, engine: Engine, backend: str) -> None:
        known = torch.compiler.list_backends(())
        if backend not in known:
            raise ArgumentValueError(
                f"torch.compile has no backend {backend!r}; it has {', '.join(map(repr, known))}. "
                "engines=['torch'] merges without compiling."
            )
        self.engine, self.backend = engine, backend

    def build(self, f: Map, x: Arrays, c: Arrays, avals: Sequence[Aval], work: Work) -> Map:
        """Compile now; see :meth:`pyadjoint_utils.Engine.build`.

        Raises:
            CannotCompile: the map is no fixed sequence of operations, or the program gives something else.
            UnsupportedError: the backend failed.
        """
        expected = self.engine.compile(f, avals)(x, c)
        program = torch.compile(_traced(f, x, c), backend=self.backend, fullgraph=True, dynamic=False)

        def call(x: Arrays, c: Arrays) -> Arrays:
            return tuple(program(_plain(x), _plain(c)))

        run = self.engine.compile(call, avals)
        try:
            found = run(x, c)
        except Exception as error:
            raise UnsupportedError(
                f"torch.compile with the backend {self.backend!r} failed: {_first_line(error)}. The backend 'inductor' "
                "needs a C++ compiler (g++, or the one that the environment variable CXX names). Write "
                "engines={'torch': 'aot_eager'} for the backend that needs none, or engines=['torch'] to merge only."
            ) from error
        if not all(map(_close, found, expected)):
            raise CannotCompile(f"the backend {self.backend!r} gives other numbers")
        return run

    def seconds(self, work: Work, order: int) -> float:
        """About how long it takes to compile a program of so many Blocks and its derivatives."""
        # Measured with inductor on two cores, which takes more than proportionally long for second derivatives.
        return 10.0 + (0.3 if order < 2 else 2.0) * work.operations


def _traced(f: Map, x: Arrays, c: Arrays) -> torch.fx.GraphModule:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # Without numbers in the tensors, so that what depends on them is an error.
            traced = make_fx(lambda x, c: f(x, c), tracing_mode="fake", _allow_non_fake_inputs=True)(
                _plain(x), _plain(c)
            )
        except Exception as error:
            raise CannotCompile(f"it cannot be traced ({_first_line(error)})") from error
    drawn = [
        node for node in traced.graph.nodes if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    ]
    if drawn:
        raise CannotCompile(f"it draws random numbers ({drawn[0].target})")
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _plain(arrays: Arrays) -> Arrays:
    """Tensors without gaps, as they were traced; numbers as they are."""
    return tuple([a.resolve_conj().resolve_neg().contiguous() if isinstance(a, torch.Tensor) else a for a in arrays])


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    if not (b.is_floating_point() or b.is_complex()):
        return torch.equal(a, b)
    scale = float(torch.nan_to_num(b.abs()).max()) if b.numel() else 0.0
    return torch.allclose(a, b, 0.0, torch.finfo(b.dtype).eps ** 0.5 * (scale or 1.0), equal_nan=True)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return textwrap.shorten(": ".join([type(error).__name__, *filter(None, lines)][:2]), 160)
