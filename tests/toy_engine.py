"""Two tiny engines, "toy" and "twin": NumPy data in immutable wrappers, differentiated by nested dual numbers.

The core's tests run on them alone, so that they need no real engine and can count what an engine is asked to do.
"""

import itertools
from collections import Counter

import numpy as np

from pyadjoint_utils import Engine, array, overload, register_engine

_levels = itertools.count()


def _operator(function):
    """An operator that yields to operands of other packages."""
    known = (int, float, complex, np.ndarray, np.generic)
    return lambda a, b: function(a, b) if isinstance(b, (_Operators, *known)) else NotImplemented


class _Operators:
    """The operators that arrays and duals share."""

    __slots__ = ()
    __array_ufunc__ = None
    __hash__ = object.__hash__

    __add__ = __radd__ = _operator(lambda a, b: add(a, b))
    __mul__ = __rmul__ = _operator(lambda a, b: multiply(a, b))
    __sub__, __rsub__ = _operator(lambda a, b: subtract(a, b)), _operator(lambda a, b: subtract(b, a))
    __truediv__, __rtruediv__ = _operator(lambda a, b: divide(a, b)), _operator(lambda a, b: divide(b, a))
    __pow__, __rpow__ = _operator(lambda a, b: power(a, b)), _operator(lambda a, b: power(b, a))
    __neg__ = lambda a: negative(a)
    __getitem__ = lambda a, index: getitem(a, index)

    def sum(self, axis=None):
        return total(self, axis)


class ToyArray(_Operators):
    """An immutable array; NumPy cannot read it without being told how."""

    __slots__ = ("data",)

    def __init__(self, data):
        object.__setattr__(self, "data", np.array(data))
        self.data.flags.writeable = False

    def __setattr__(self, name, value):
        raise AttributeError("a ToyArray is immutable")

    def __dlpack__(self, **kwargs):
        raise BufferError("toy arrays are exchanged through their engine")

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)


class TwinArray(ToyArray):
    """The same for another engine."""

    __slots__ = ()


class Dual(_Operators):
    """A value and its tangent at one level of differentiation."""

    __slots__ = ("level", "primal", "tangent")

    def __init__(self, primal, tangent, level):
        self.primal, self.tangent, self.level = primal, tangent, level

    shape = property(lambda self: self.primal.shape)
    dtype = property(lambda self: self.primal.dtype)


def _bottom(value):
    while isinstance(value, Dual):
        value = value.primal
    return value


def _apply(function, rule, *args):
    """Run a NumPy function on the data, and its tangent rule on each level of duals."""
    level = max((a.level for a in args if isinstance(a, Dual)), default=None)
    if level is None:
        cls = next(type(a) for a in args if isinstance(a, ToyArray))
        return cls(function(*[a.data if isinstance(a, ToyArray) else a for a in args]))
    mine = [isinstance(a, Dual) and a.level == level for a in args]
    primals = [a.primal if own else a for a, own in zip(args, mine, strict=True)]
    tangents = [a.tangent if own else None for a, own in zip(args, mine, strict=True)]
    value = _apply(function, rule, *primals)
    terms = [t for t in rule(value, primals, tangents) if t is not None]
    tangent = terms[0]
    for term in terms[1:]:
        tangent = tangent + term
    if tangent.shape != value.shape:
        tangent = tangent + type(_bottom(value))(np.zeros(value.shape, value.dtype))
    return Dual(value, tangent, level)


def _primitive(function, *partials):
    """A function with one partial derivative per argument: ``partial(value, primals) -> factor``."""

    def rule(value, primals, tangents):
        return [t if t is None else t * d(value, *primals) for t, d in zip(tangents, partials, strict=True)]

    return lambda *args: _apply(function, rule, *args)


def _linear(function, x):
    return _apply(function, lambda value, primals, tangents: [_linear(function, tangents[0])], x)


add = _primitive(np.add, lambda v, a, b: 1.0, lambda v, a, b: 1.0)
subtract = _primitive(np.subtract, lambda v, a, b: 1.0, lambda v, a, b: -1.0)
multiply = _primitive(np.multiply, lambda v, a, b: b, lambda v, a, b: a)
divide = _primitive(np.true_divide, lambda v, a, b: 1.0 / b, lambda v, a, b: -1.0 * a / (b * b))
power = _primitive(np.power, lambda v, a, b: b * power(a, b - 1), lambda v, a, b: v * log(a))
exp = _primitive(np.exp, lambda v, a: v)
log = _primitive(np.log, lambda v, a: 1.0 / a)
sin = _primitive(np.sin, lambda v, a: cos(a))
cos = _primitive(np.cos, lambda v, a: -1.0 * sin(a))
absolute = _primitive(np.abs, lambda v, a: a / v)
negative = lambda x: _linear(np.negative, x)
conj = lambda x: _linear(np.conj, x)
real = lambda x: _linear(np.real, x)
imag = lambda x: _linear(np.imag, x)
total = lambda x, axis=None: _linear(lambda d: np.sum(d, axis=axis), x)
reshape = lambda x, shape: _linear(lambda d: np.reshape(d, shape), x)
getitem = lambda x, index: _linear(lambda d: d[index.data if isinstance(index, ToyArray) else index], x)
astype = lambda x, dtype: _linear(lambda d: d.astype(dtype), x)
matmul = lambda a, b: total(getitem(a, (..., None)) * b, -2) if len(b.shape) > 1 else total(a * b, -1)


def argmax(x):
    """An integer output: it has no derivative."""
    bottom = _bottom(x)
    return type(bottom)(np.argmax(bottom.data))


def _question(function):
    """A function whose values are truth values, without a derivative."""

    def ask(*args):
        data = [v.data if isinstance(v, ToyArray) else v for v in map(_bottom, args)]
        return next(type(_bottom(a)) for a in args if isinstance(_bottom(a), ToyArray))(function(*data))

    return ask


class ToyEngine(Engine):
    """Duals for tangents; one tangent per basis direction for adjoints, which is a map of duals again."""

    name = "toy"
    array_types = (ToyArray,)

    def __init__(self):
        self.counts = Counter()

    def enter(self, source, dtype=None):
        self.counts["entered"] += 1
        return self.array_types[0](np.asarray(source.data if isinstance(source, ToyArray) else source, dtype))

    def to_numpy(self, array):
        self.counts["left"] += 1
        return array.data

    def is_tracer(self, leaf):
        return isinstance(leaf, Dual) and isinstance(_bottom(leaf), self.array_types)

    def jvp_of(self, f, n):
        def jvp(x, c):
            level = next(_levels)
            y = f(tuple([Dual(p, t, level) for p, t in zip(x[:n], x[n:], strict=True)]), c)
            mine = [isinstance(v, Dual) and v.level == level for v in y]
            primals = [v.primal if own else v for v, own in zip(y, mine, strict=True)]
            tangents = [
                astype(v.tangent, v.dtype) if own else self.array_types[0](np.zeros(v.shape, v.dtype))
                for v, own in zip(y, mine, strict=True)
            ]
            return (*primals, *tangents)

        return jvp

    def vjp_of(self, f, n):
        jvp = self.jvp_of(f, n)

        def vjp(x, c):
            primals, cotangents = x[:n], x[n:]
            return tuple([self._adjoint(jvp, k, primals, cotangents, c) for k in range(n)])

        return vjp

    def _adjoint(self, jvp, k, primals, cotangents, c):
        cls = self.array_types[0]
        zeros = [cls(np.zeros(x.shape, x.dtype)) for x in primals]
        result = zeros[k]
        units = (1.0, 1.0j) if primals[k].dtype.kind == "c" else (1.0,)
        for index, unit in itertools.product(np.ndindex(primals[k].shape), units):
            basis = np.zeros(primals[k].shape, primals[k].dtype)
            basis[index] = unit
            direction = [*zeros[:k], cls(basis), *zeros[k + 1 :]]
            tangents = jvp((*primals, *direction), c)[len(cotangents) :]
            for dy, yb in zip(tangents, cotangents, strict=True):
                result = result + cls(basis) * astype(total(real(conj(dy) * yb)), basis.real.dtype)
        return result

    def compile(self, f, avals):
        self.counts["prepared"] += 1

        def call(x, c):
            self.counts["called"] += 1
            strangers = [type(v).__name__ for v in (*x, *c) if type(v) not in self.array_types]
            assert not strangers, f"the engine {self.name} was handed {strangers}"
            return f(x, c)

        return call

    def function(self, name):
        return _FUNCTIONS.get(name)


class TwinEngine(ToyEngine):
    """A second engine with a class of arrays of its own."""

    name = "twin"
    array_types = (TwinArray,)


_FUNCTIONS = {
    "add": add,
    "subtract": subtract,
    "multiply": multiply,
    "true_divide": divide,
    "power": power,
    "negative": negative,
    "abs": absolute,
    "less": _question(np.less),
    "greater": _question(np.greater),
    "sum": lambda x, axis=None: total(x, axis),
    "sin": sin,
    "cos": cos,
    "exp": exp,
    "log": log,
    "getitem": getitem,
    "reshape": reshape,
    "matmul": matmul,
    "conj": conj,
    "real": real,
    "imag": imag,
    "astype": astype,
}
engine = register_engine(ToyEngine())
twin = register_engine(TwinEngine())


def toy(data, dtype=None):
    """A value on the tape that the toy engine owns."""
    return array(ToyArray(np.asarray(data, dtype)))


def overload_toy(function=None, **options):
    """Overload for the toy engine."""
    return overload(function, engine, **options)


def overload_twin(function=None, **options):
    """Overload for the twin."""
    return overload(function, twin, **options)


def asnumpy(value):
    """The data of a value, off the tape."""
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value)
