"""A package, because another distribution on the path may bring a package called tests."""

import shared  # noqa: F401  # before the libraries, which read their settings on import
