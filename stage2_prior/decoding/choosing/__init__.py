"""How a token is chosen from its logits: guidance, filters, and the draw."""
