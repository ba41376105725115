"""Stage two: token grids -> token grids. Knows nothing of the tokenizer but its cached tokens."""

from shared.signals import die_quietly_while_importing

die_quietly_while_importing()  # here, because Python imports this before anything else of the stage
