"""Numba kernels for the CPU. Importing this package imports nothing; `backend` brings Numba."""

CHUNK = 8192  # columns of one partial sum of distances
