"""What computes logits: blocks and what they mix with, the vocabulary, and the loss."""
