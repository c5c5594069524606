"""Run all benchmarks: ``python -m benchmarks``."""

from benchmarks import blocks, compiled, inside, jacobians, transformations

blocks.main()
jacobians.main()
transformations.main()
inside.main()
compiled.main()
