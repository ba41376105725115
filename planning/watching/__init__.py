"""A plan as others see it while it is worked on: read from its folder and its runs, and nothing is written."""
