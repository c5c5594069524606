"""Run all benchmarks: ``python -m benchmarks``."""

from benchmarks import blocks, compiled, inside, jacobians, long_loops, sparse, transformations

blocks.main()
jacobians.main()
sparse.main()
transformations.main()
inside.main()
compiled.main()
long_loops.main()
