"""The part of a tape between controls and outputs, and the four sweeps over it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import methodcaller
from typing import Any

import numpy as np
from pyadjoint import Block, Tape
from pyadjoint.tape import stop_annotating

from pyadjoint_utils.annotation import claim
from pyadjoint_utils.block import EngineBlock
from pyadjoint_utils.checkpointing.runs import Run, Steps
from pyadjoint_utils.engine import Aval
from pyadjoint_utils.errors import StaleTapeError
from pyadjoint_utils.progress import watched
from pyadjoint_utils.recorded import recorded_values
from pyadjoint_utils.tapes import UPDATES, TapeState, afterwards, schedule_of, state_of
from pyadjoint_utils.transforming.rule_block import RuleBlock
from pyadjoint_utils.variable import Variable, is_dropped, is_lost


class Plan:
    """Which Blocks an evaluation runs, and which of them a derivative passes.

    Args:
        tape: the tape.
        outputs: block variables of the outputs.
        controls: block variables that are differentiated.
        others: block variables that change without being differentiated.
    """

    def __init__(self, tape: Tape, outputs: Sequence[Any], controls: Sequence[Any], others: Sequence[Any] = ()) -> None:
        self.tape, self.outputs, self.controls = tape, list(outputs), list(controls)
        self.sources, self._varied = [*controls, *others], set(controls)
        self.schedule = schedule_of(tape)
        if self.schedule is not None:
            self.schedule.finish(tape.get_blocks(), {*self.sources, *self.outputs})
        blocks = list(tape.get_blocks())
        self.forward = self._computed(blocks)
        self.derivative = _between(self.forward, set(controls), set(outputs), _differentiable)
        produced = {bv for block in self.forward for bv in block.get_outputs()}
        self.dependent = _dependent(self.derivative, set(controls), _differentiable)
        self.touched = (
            self.dependent
            | set(self.outputs)
            | {bv for block in self.derivative for bv in (*block.get_dependencies(), *block.get_outputs())}
        )
        # A variable that is a source as well as computed is cut off from what computes it.
        self._cut = {
            block: [bv for bv in block.get_outputs() if bv in set(self.sources)]
            for block in self.forward
            if any(bv in set(self.sources) for bv in block.get_outputs())
        }
        # Variables of other packages do not notice by themselves that an evaluation moves them.
        self.unaware = [bv for bv in produced if not isinstance(bv, Variable)]
        seen: dict[Any, None] = {}
        for block in self.forward:
            for bv in block.get_dependencies():
                if bv not in produced and bv not in self.sources:
                    seen[bv] = None
        for bv in self.outputs:
            if bv not in produced and bv not in self.sources:
                seen[bv] = None
        self.boundary = list(zip(seen, recorded_values(tape, list(seen)), strict=True))
        self._scope = _common_scope(self.forward)
        self._theirs = next(filter(None, map(_belongs_to_others, self.forward)), None)
        self._unmoved: tuple[dict[Any, Any], int] | None = None  # when no other tape had moved a value
        self._steps: Steps | None = None
        if self.schedule is not None:
            lasting = (*self.sources, *self.outputs, *seen)
            self._steps = Steps(self.forward, self.derivative, lasting, self.schedule, tape.get_blocks())
        # What was found out about the sparsity of derivatives along this way, by matrix and by pattern.
        self.patterns: dict[Any, dict[Any, Any]] = {}

    def _computed(self, blocks: list[Block]) -> list[Block]:
        """The Blocks that an evaluation runs: those that depend on a source, and those whose values a schedule let go."""
        sources, needed, result = set(self.sources), set(self.outputs), []
        varied = _dependent(blocks, sources, _all)
        for block in reversed(blocks):
            produced = [bv for bv in block.get_outputs() if bv in needed and bv not in sources]
            if any(bv in varied or (self.schedule is not None and is_lost(bv)) for bv in produced):
                needed.update(block.get_dependencies())
                result.append(block)
        return result[::-1]

    def depends(self, control: Any) -> bool:
        """Whether any output depends differentiably on a control."""
        return control in self.outputs or any(control in block.get_dependencies() for block in self.derivative)

    def ends(self, block: Block) -> tuple[list[int], list[int]]:
        """Return the positions among a Block's dependencies and outputs between which a derivative passes."""
        dependencies, outputs = _differentiable(block)
        passing = self.dependent.intersection(dependencies)
        deps, outs = block.get_dependencies(), block.get_outputs()
        allowed = set(block.rules.active) if isinstance(block, EngineBlock) else set(range(len(deps)))
        return (
            [i for i, bv in enumerate(deps) if bv in passing and i in allowed],
            [k for k, bv in enumerate(outs) if bv in set(outputs)],
        )

    def claim(self) -> None:
        """Raise if the way has Blocks or values that cannot be used in this thread now, or that other tapes have moved."""
        if self._theirs is not None:
            claim(self._theirs)
        updates, count = state_of(self.tape).updates, UPDATES.count
        if self._unmoved is not None and self._unmoved[0] is updates and self._unmoved[1] == count:
            return
        for bv in (*updates, *[bv for bv, _ in self.boundary]):
            value = getattr(bv, "updated", None)
            if value is not None and updates.get(bv) is not value:
                raise StaleTapeError(
                    f"A value that Blocks of this tape use, {bv!s}, was given another one by Control.update while neither "
                    "this tape was the working tape nor the Control was made on it. Update it once more with this tape as "
                    "the working tape: with set_working_tape(tape): control.update(value)."
                )
        self._unmoved = updates, count

    def reset(self) -> None:
        """Tell foreign Blocks, and what other packages keep on the tape, that a new evaluation begins."""
        for block in self.forward:
            if not isinstance(block, EngineBlock):
                block.reset()
        for data in self.tape._package_data.values():
            if not isinstance(data, TapeState):
                data.reset()

    # The sweeps --------------------------------------------------------------------------------------------------------

    def recompute(self) -> None:
        """Evaluate: ``y = g(x)`` Block by Block."""
        if self._steps is not None:
            self._evaluated(self._steps)
            return
        self._take_boundary()
        with stop_annotating(), self._scope():
            compute = self._compute if self._cut else _value_of
            for block in self._sweep("Evaluating functional", self.forward, len(self.forward)):
                compute(block)

    def ahead(self, *, stored: bool = False) -> Iterable[Block]:
        """Return the Blocks that a derivative passes, in order, each with its values in place where it is reached.

        Under a schedule that is another evaluation, at the values that the sources have.

        Args:
            stored: whether the schedule stores tangents beside the values, for :meth:`back`.
        """
        if self._steps is None:
            return self.derivative
        run, passing = self._begun(self._steps, stored=stored), self._steps.passing
        return (block for block in run.forward(self._compute) if block in passing)

    def back(self, *, tangents: bool = False) -> Iterable[Block]:
        """Return the Blocks that a derivative passes, backwards, each with its values in place where it is reached.

        Under a schedule that concludes the last evaluation, or does all of it again if that was concluded before.

        Args:
            tangents: whether the tangents of the last evaluation are computed again as well.
        """
        if self._steps is None:
            return self.derivative[::-1]
        return self._concluded(self._steps).back(self._compute_with_tangent if tangents else self._compute)

    def tangent(self, *, stored: bool = False) -> None:
        """Propagate ``tlm_value`` of the controls to the outputs; ``stored`` as for :meth:`ahead`."""
        with stop_annotating(), self._scope(), self.marks():
            tangent = self._isolating(_tangent_of, "tlm_value")
            for block in self._sweep("Evaluating TLM", self.ahead(stored=stored), len(self.derivative)):
                tangent(block)

    def adjoint(self) -> None:
        """Propagate ``adj_value`` of the outputs to the controls."""
        with stop_annotating(), self._scope(), self.marks():
            adjoint = self._isolating(_adjoint_of, "adj_value")
            for block in self._sweep("Evaluating adjoint", self.back(), len(self.derivative)):
                adjoint(block)
                self._consume(block, "adj_value")

    def second_adjoint(self) -> None:
        """Propagate ``adj_value`` and ``hessian_value`` together, after :meth:`tangent`, stored."""
        with stop_annotating(), self._scope(), self.marks():
            adjoints = self._isolating(second_adjoint_of, "adj_value", "hessian_value")
            for block in self._sweep("Evaluating Hessian", self.back(tangents=True), len(self.derivative)):
                adjoints(block)
                self._consume(block, "adj_value", "hessian_value")

    def _take_boundary(self) -> None:
        for bv, value in self.boundary:
            bv._checkpoint = value

    def _begun(self, steps: Steps, *, stored: bool = False) -> Run:
        """Begin another execution of the schedule."""
        given = [(bv, bv._checkpoint, bv.tlm_value) for bv in self.sources]
        steps.schedule.forget_record()
        run = Run(steps, tangents=stored)
        state_of(self.tape).start(run)
        # What was let go may have been a value of the loop that this plan starts from.
        for bv, value, tangent in given:
            bv._checkpoint, bv.tlm_value = value, tangent
        self._take_boundary()
        return run

    def _evaluated(self, steps: Steps) -> Run:
        run = self._begun(steps)
        with stop_annotating(), self._scope():
            for _ in self._sweep("Evaluating functional", run.forward(self._compute), len(self.forward)):
                pass
        return run

    def _concluded(self, steps: Steps) -> Run:
        """Return a run at the end of its evaluation, which at first was the program itself."""
        state = state_of(self.tape)
        if state.owner is None and state.run is None:
            recorder = steps.schedule.record_of(self.tape.get_blocks())
            if recorder is not None and not any(is_dropped(bv) for bv in steps.lasting):
                state.run = Run.of_the_record(steps, recorder)
        run = state.run
        return run if run is not None and run.steps is steps and run.ready else self._evaluated(steps)

    def _compute(self, block: Block) -> None:
        if block not in self._cut:
            block.recompute()
            return
        kept = [(bv, bv._checkpoint) for bv in self._cut[block]]
        block.recompute()
        for bv, value in kept:
            bv._checkpoint = value

    def _compute_with_tangent(self, block: Block) -> None:
        self._compute(block)
        for bv in block.get_outputs():
            if bv not in self._varied:
                bv.tlm_value = None
        self._isolating(_tangent_of, "tlm_value")(block)

    def clear(self, *kinds: str) -> None:
        """Forget adjoint, tangent or Hessian values of every variable on the way."""
        for bv in (*self.touched, *self.controls):
            for kind in kinds:
                setattr(bv, kind, None)

    @contextmanager
    def clean(self, *kinds: str) -> Iterator[None]:
        """Begin without adjoint, tangent or Hessian values on the way, and leave none, also after an exception."""
        self.clear(*kinds)
        with afterwards(lambda: self.clear(*kinds)):
            yield

    def _sweep(self, title: str, blocks: Iterable[Block], length: int) -> Iterable[Block]:
        return watched(self.tape._bar, title, blocks, length)

    def _consume(self, block: Block, *kinds: str) -> None:
        for bv in block.get_outputs():
            if bv not in self._varied:
                for kind in kinds:
                    setattr(bv, kind, None)

    @contextmanager
    def marks(self) -> Iterator[None]:
        """Mark what depends on the controls, as Pyadjoint's Blocks look for it."""
        with afterwards(lambda: self._mark(False)):
            self._mark(True)
            yield

    def _mark(self, dependent: bool) -> None:
        for bv in self.dependent:
            bv.is_control_dependent = dependent

    def _isolating(self, evaluate: Callable[[Block], None], *kinds: str) -> Callable[[Block], None]:
        """Return what evaluates a Block, with a control hidden from the Block that once computed it."""

        def isolated(block: Block) -> None:
            kept = [(bv, kind, getattr(bv, kind)) for bv in self._cut.get(block, ()) for kind in kinds]
            for bv, kind, _ in kept:
                setattr(bv, kind, None)
            try:
                evaluate(block)
            finally:
                for bv, kind, value in kept:
                    setattr(bv, kind, value)

        return isolated if self._cut else evaluate


_value_of: Callable[[Block], None] = methodcaller("recompute")


def _tangent_of(block: Block) -> None:
    block.evaluate_tlm(markings=True)


def _adjoint_of(block: Block) -> None:
    block.evaluate_adj(markings=True)


def second_adjoint_of(block: Block) -> None:
    """Propagate ``adj_value`` and ``hessian_value`` over a Block."""
    if isinstance(block, EngineBlock):
        block.evaluate_adj_and_hessian(markings=True)
        return
    # A Block of another package skips its Hessian where there is no incoming second adjoint, although its own
    # curvature needs no such thing; a zero makes it run.
    for bv in block.get_outputs():
        if bv.adj_value is not None and bv.hessian_value is None:
            bv.hessian_value = bv.output._ad_init_zero(dual=True)
    block.evaluate_adj(markings=True)
    block.evaluate_hessian(markings=True)


def aval_of(bv: Any) -> Aval:
    """Shape and dtype of the value that a block variable stands for."""
    return bv.aval if type(bv) is Variable else Aval((), np.dtype(np.float64))


def _common_scope(blocks: Sequence[Block]) -> Callable[[], AbstractContextManager[Any]]:
    """What makes the context of a sweep: that of an engine which runs all Blocks."""
    rules = {block.rules for block in blocks if isinstance(block, EngineBlock)}
    engines = {r.engine for r in rules}
    if len(engines) != 1 or not all(isinstance(block, EngineBlock) for block in blocks):
        return nullcontext
    (engine,), functions = engines, [r.inputs for r in rules]
    return lambda: engine.scope(functions)


def _belongs_to_others(block: Block) -> str | None:
    """What a Block has that belongs to one thread at a time, for messages."""
    if not getattr(block, "any_thread", False):
        return f"A {type(block).__name__}"
    strangers = [bv for bv in (*block.get_dependencies(), *block.get_outputs()) if type(bv) is not Variable]
    return f"An {type(strangers[0].output).__name__}" if strangers else None


def _all(block: Block) -> tuple[list[Any], list[Any]]:
    return block.get_dependencies(), block.get_outputs()


def _differentiable(block: Block) -> tuple[list[Any], list[Any]]:
    """The dependencies and outputs of a Block between which a derivative passes."""
    if isinstance(block, RuleBlock):
        return block.ins, block.outs
    dependencies, outputs = block.get_dependencies(), block.get_outputs()
    if not isinstance(block, EngineBlock):
        return dependencies, outputs
    rules = block.rules
    if rules.passes_everywhere:
        return dependencies, outputs
    return (
        [dependencies[i] for i in rules.active],
        [bv for bv, aval in zip(outputs, rules.outputs, strict=True) if aval.differentiable],
    )


def _dependent(blocks: Iterable[Block], sources: set[Any], ends: Any) -> set[Any]:
    reached = set(sources)
    for block in blocks:
        dependencies, outputs = ends(block)
        if not reached.isdisjoint(dependencies):
            reached.update(outputs)
    return reached


def _between(blocks: Sequence[Block], sources: set[Any], outputs: set[Any], ends: Any) -> list[Block]:
    """Return the Blocks on a path from sources to outputs, in order."""
    reached, needed = set(sources), set(outputs)
    on_path = []
    for block in blocks:
        dependencies, produced = ends(block)
        if not reached.isdisjoint(dependencies):
            reached.update(produced)
            on_path.append(block)
    result = []
    for block in reversed(on_path):
        dependencies, produced = ends(block)
        if any(bv in needed and bv not in sources for bv in produced):
            needed.update(dependencies)
            result.append(block)
    return result[::-1]
