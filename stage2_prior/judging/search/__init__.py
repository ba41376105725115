"""How a prior is best drawn from: how much autoguidance, and which temperature, top-p and guidance."""
