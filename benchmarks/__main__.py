"""Run all benchmarks: ``python -m benchmarks``."""

from benchmarks import blocks, compiled, inside, jacobians, long_loops, transformations

blocks.main()
jacobians.main()
transformations.main()
inside.main()
compiled.main()
long_loops.main()
