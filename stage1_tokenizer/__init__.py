"""Stage one: images <-> token grids."""

from shared.signals import die_quietly_while_importing

die_quietly_while_importing()  # here, because Python imports this before anything else of the stage
