"""What Numba compiles for CPUs, of training and of both stages. Nothing here is needed to understand the layers:

each has the same in plain PyTorch, which runs wherever `suit_kernels` says no.
"""
