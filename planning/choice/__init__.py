"""What a plan chooses, by rules, and the configurations that come of it."""
