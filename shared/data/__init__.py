"""Image sources to batches, in an order that any position can be resumed from."""
