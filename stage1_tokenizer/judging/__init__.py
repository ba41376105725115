"""What a tokenizer is worth: measures of its reconstructions, its cost, and what it does made visible."""
