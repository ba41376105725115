"""What a prior draws, judged: how far from real images, how many copies, and the page of a training.

What turns tokens into images (`codec.Codec`), the networks that look at them and the grids that are known are handed
in: nothing here knows a tokenizer.
"""
