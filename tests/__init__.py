"""A package, because another distribution on the path may bring a package called tests."""

import shared  # noqa: F401  # before PyTorch, as commands do
