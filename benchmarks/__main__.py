"""Run all benchmarks: ``python -m benchmarks``."""

from benchmarks import blocks

blocks.main()
