"""What can be set: the keys of a configuration with their meaning, and the command line that reads them."""
