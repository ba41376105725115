"""Where images come from: files in a folder, rows of a table, or drawings that install from PyPI."""
