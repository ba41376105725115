"""One picture: whether a file is one, and its pixels as every viewer shows them."""
