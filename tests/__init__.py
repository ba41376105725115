"""A package, because another distribution on the path may bring a package called tests."""
