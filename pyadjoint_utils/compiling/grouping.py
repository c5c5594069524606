"""Which steps of a program can run next to each other in one engine."""

import heapq
from collections.abc import Iterator, Sequence

from pyadjoint_utils.compiling.program import Program, Step
from pyadjoint_utils.engine import Engine


class Grouping:
    """Orders the steps of a program so that an engine gets long runs of them.

    Args:
        program: the program.
        engines: the engines that merge steps.
    """

    def __init__(self, program: Program, engines: Sequence[Engine]) -> None:
        self.steps, self.engines = program.steps, list(engines)
        self._constants = program.constants
        self.reasons: dict[int, str] = {}  # why a step is in no program, by its position
        self._candidates = [self._engines_of(i, step) for i, step in enumerate(self.steps)]
        producers = {slot: i for i, step in enumerate(self.steps) for slot in step.outputs}
        before = [{producers[slot] for slot in step.inputs if slot in producers} for step in self.steps]
        self._missing = [len(others) for others in before]
        self._consumers: list[list[int]] = [[] for _ in self.steps]
        for i, others in enumerate(before):
            for k in others:
                self._consumers[k].append(i)
        self._done = [False] * len(self.steps)
        self._ready: dict[Engine | None, list[int]] = {None: [], **{engine: [] for engine in self.engines}}

    def _engines_of(self, i: int, step: Step) -> list[Engine]:
        """The engines that can run a step inside of a program."""
        found = []
        for engine in self.engines:
            lowered = step.lowered(engine, self._constants)
            if lowered is not None and lowered.rules.compiled:
                found.append(engine)
            elif lowered is not None:
                self.reasons[i] = "jit=False: it may do what no program can hold"
        if not found and i not in self.reasons:
            self.reasons[i] = (
                "not a Block of an engine" if step.engine is None else f"{step.engine.name} merges no Blocks"
            )
        return found

    def groups(self) -> Iterator[tuple[Engine | None, list[Step]]]:
        """Return runs of steps with their engine, None for steps that are in no program."""
        for i, count in enumerate(self._missing):
            if not count:
                self._release(i)
        while True:
            engine = self._next()
            group = list(self._run(engine))
            if not group:
                return
            yield engine, group

    def _release(self, i: int) -> None:
        engines: list[Engine | None] = [*self._candidates[i]] or [None]
        for engine in engines:
            heapq.heappush(self._ready[engine], i)

    def _run(self, engine: Engine | None) -> Iterator[Step]:
        """Take the steps that the engine can run, in the order of the tape, until one of another must come first."""
        heap = self._ready[engine]
        while heap:
            i = heapq.heappop(heap)
            if self._done[i]:
                continue
            self._done[i] = True
            yield self.steps[i]
            for k in self._consumers[i]:
                self._missing[k] -= 1
                if not self._missing[k]:
                    self._release(k)

    def _next(self) -> Engine | None:
        """The engine to go on with."""
        for heap in self._ready.values():
            while heap and self._done[heap[0]]:
                heapq.heappop(heap)
        waiting = {engine: heap for engine, heap in self._ready.items() if heap}
        if None in waiting:  # others may become ready by it
            return None
        # What several engines can run waits for one that has something of its own.
        return min(waiting, key=lambda engine: (not self._has_own(engine), waiting[engine][0]), default=None)

    def _has_own(self, engine: Engine | None) -> bool:
        return any(self._candidates[i] == [engine] and not self._done[i] for i in self._ready[engine])
