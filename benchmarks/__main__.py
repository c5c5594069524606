"""Run all benchmarks: ``python -m benchmarks``."""

from benchmarks import blocks, jacobians

blocks.main()
jacobians.main()
