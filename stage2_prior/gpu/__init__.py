"""A decoding step on a GPU, in Triton kernels; as stage2_prior.cpu and its kernels are for a CPU."""
