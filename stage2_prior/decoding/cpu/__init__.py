"""A decoding step on a CPU, by Numba's kernels. The files have the names of their twins in gpu/."""
