"""The tests. A package by name, because some packages that one may install bring a `tests` of their own."""
