"""Stage two: token grids -> token grids. Knows nothing of the tokenizer but its cached tokens."""
