"""Stage one: images <-> token grids."""
