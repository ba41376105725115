"""What both training loops share.

Time is counted in images (token grids in stage two), so batch size, accumulation and the number of processes can change
without moving a schedule. Randomness is a pure function of (seed, images seen, rank), so a resumed run is the same run.
"""
