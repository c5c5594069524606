"""Maps over a leading axis of some of their inputs, by ``torch.func.vmap`` where that gives what single rows give."""

from collections.abc import Sequence

import torch

from pyadjoint_utils.engine import Arrays, Map


def generic(x: torch.Tensor, k: int) -> torch.Tensor:
    """A direction in which nothing vanishes by chance, the same at every run."""
    wave = torch.arange(1, x.numel() + 1, dtype=torch.float64, device=x.device).mul(0.7).add(k).sin().reshape(x.shape)
    return (wave * (1 + 0.5j)).to(x.dtype) if x.is_complex() else wave.to(x.dtype)


def batch_of(f: Map, batched: Sequence[bool], loop: Map) -> Map:
    """Return ``f`` over a leading axis of the marked inputs.

    Transformations differentiate other formulas than torch's own engine does: some are missing, some lose a term, and which
    formula it is may depend on values. So one more row goes along in each call and is computed in both ways; once they
    differ, rows are taken one by one.

    Args:
        f: the map.
        batched: marks of its inputs.
        loop: the same, one row at a time.
    """
    dims = (tuple([0 if marked else None for marked in batched]), None)
    together = True

    def mapped(x: Arrays, c: Arrays) -> Arrays:
        nonlocal together
        if together and not torch._C._are_functorch_transforms_active():  # there, there are no numbers to compare
            found = checked(x, c)
            if found is not None:
                return found
            together = False
        return loop(x, c)

    def checked(x: Arrays, c: Arrays) -> Arrays | None:
        more = [generic(a[:1], k) if marked else None for k, (a, marked) in enumerate(zip(x, batched, strict=True))]
        rows = [a if row is None else torch.cat([a, row]) for a, row in zip(x, more, strict=True)]
        one = tuple([a if row is None else row[0] for a, row in zip(x, more, strict=True)])
        try:
            found = torch.func.vmap(f, in_dims=dims)(tuple(rows), c)
        except (RuntimeError, NotImplementedError):
            return None
        alone = f(_detached(one), _detached(c))
        if not all(_close(a[-1].detach(), b) for a, b in zip(found, alone, strict=True)):
            return None
        return tuple([a[:-1] for a in found])

    return mapped


def _detached(arrays: Arrays) -> Arrays:
    return tuple([a.detach() if isinstance(a, torch.Tensor) else a for a in arrays])


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    rounding = torch.finfo(b.dtype).eps ** 0.5
    size = float(b.abs().nan_to_num().max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=rounding, atol=rounding * size, equal_nan=True)
