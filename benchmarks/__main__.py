"""Run all benchmarks: ``python -m benchmarks``."""

from benchmarks import blocks, inside, jacobians, transformations

blocks.main()
jacobians.main()
transformations.main()
inside.main()
