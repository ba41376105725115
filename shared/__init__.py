"""What both stages stand on. Imports neither of them."""

from shared.waiting import spin_briefly

spin_briefly()  # here, because commands import this before PyTorch
