"""What a tokenizer is worth: how near its reconstructions come, what it costs, and what it does made visible.

Measuring is one pass (`measure`): every image is reconstructed once, and instruments look on. The words: a *similarity*
is a formula for one image and its reconstruction, an *instrument* takes in a whole set of them, a *figure* is what an
instrument says in one number, and *findings* (`shared.reporting`) are the page of figures with all they depend on.
"""
