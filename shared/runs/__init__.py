"""What a training leaves behind and others take up: run directories, weights, token caches, shared models."""
