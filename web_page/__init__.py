"""The parts of web.py: a page over a prior and its tokenizer, made with Gradio.

Visitors share the models, which nobody changes; each chooses one, and draws with a decoder of its own. `page` puts the
tabs together, and `server` serves them.
"""
