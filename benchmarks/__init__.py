"""Scripts that measure: run from the root, as ``python -m benchmarks.speed.caching``.

README.md tells which figure of the documentation is whose.
"""
