"""Run all benchmarks: ``python -m benchmarks``."""

from benchmarks import blocks, inside, jacobians

blocks.main()
jacobians.main()
inside.main()
