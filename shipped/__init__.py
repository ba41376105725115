"""The model that comes with Tessera: what `sample.py` and the web page use before anything is trained.

Each folder is a prior with its tokenizer inside, as `share.py` writes them. README.md there says how it was trained, on
which images, and under which licence.
"""

from pathlib import Path

BUNDLED = Path(__file__).parent / "avatars"
