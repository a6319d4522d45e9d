"""What the package is measured with: ``pytest benchmarks --benchmark-only``, ``python -m benchmarks.ops_bars``."""
