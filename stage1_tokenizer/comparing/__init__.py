"""Tokenizers trained on the same images and held against one another."""
