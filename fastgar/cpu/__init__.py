"""Numba kernels for the CPU. Importing this package imports nothing; `backend` brings Numba."""
