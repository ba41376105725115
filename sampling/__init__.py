"""The parts of sample.py: what is asked for on the command line, what is drawn, and what is written."""
