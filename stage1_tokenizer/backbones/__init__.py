"""Encoders and decoders: images <-> grids of vectors."""
