"""What a plan looks at before it chooses: the pictures, the machine, and how fast that trains."""
