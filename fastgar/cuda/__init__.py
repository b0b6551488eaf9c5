"""CUDA kernels for data on NVIDIA GPUs, through CuPy. Importing this package imports nothing."""
