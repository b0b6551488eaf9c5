"""Searches among n rows by their distances, and what they need of linear algebra: no kernels.

Importing this package imports nothing; its modules bring Numba, which compiles what is slow.
"""

WORK_LIMIT = 1_000_000_000  # operations of about a nanosecond
