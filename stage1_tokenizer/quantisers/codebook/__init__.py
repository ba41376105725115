"""Codebooks: the nearest code of a vector, and what keeps codes in use."""
