"""Reading what others published: files of any kind, and the names and shapes of their weights."""
