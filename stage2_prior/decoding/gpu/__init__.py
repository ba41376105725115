"""A decoding step on a GPU, by Triton's kernels. The files have the names of their twins in cpu/."""
