"""Drawing token grids from a prior: the engine, how a token is chosen, and the step's kernels for CPUs and GPUs."""
