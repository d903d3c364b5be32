"""What is slow, what is good: run from the root, as ``python -m benchmarks.speed``.

README.md tells which figure of the documentation is whose.
"""
