"""Modules of both stages and their form in plain PyTorch: Mamba-2, SSD, norms, SwiGLU, positions, muP."""
