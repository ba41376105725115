"""How a step changes weights: optimizers and their schedule, adapters of low rank, and the moving average."""
