"""Draws docs/assets/tokens.png: a picture, its tokens and their picture, and some codes decoded alone.

PYTHONPATH=. python docs/figures.py, after the bundled model has changed.
"""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from shared.data.pixels import to_float
from shared.data.sources.drawings.dicebear import draw
from shipped import BUNDLED
from stage1_tokenizer.judging.pictures import code_colours, decode_codes, token_picture
from stage1_tokenizer.tokenizer import Tokenizer

UNSEEN = "micah", 10_002  # style and number of an avatar that the model was not trained on
ALONE = 8  # codes on a side


def main() -> None:
    """Draw the figure."""
    tokenizer = Tokenizer.from_pretrained(BUNDLED / "tokenizer")
    pixels_HWC = draw(UNSEEN[0], 96, "white", UNSEEN[1]).pixels_HWC
    x_BCHW = to_float(torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1))[None]
    tokens_Bhw = tokenizer.tokenize(x_BCHW)
    codes_N = tokens_Bhw.unique(return_counts=True)
    often_N = codes_N[0][codes_N[1].argsort(descending=True)[: ALONE**2]]
    figure = Figure(figsize=(12, 3.3), layout="constrained")
    picture, numbers, decoded, codes = figure.subplots(1, 4)
    show(picture, x_BCHW[0], "a picture: 96 x 96 pixels")
    for place in range(0, 97, 8):
        picture.axhline(place - 0.5, color="grey", linewidth=0.3)
        picture.axvline(place - 0.5, color="grey", linewidth=0.3)
    show(
        numbers, token_picture(tokens_Bhw[0], code_colours(tokenizer.quantiser.codes_KD.detach())), "its 12 x 12 tokens"
    )
    for row, tokens_w in enumerate(tokens_Bhw[0].tolist()):
        for column, token in enumerate(tokens_w):
            numbers.text(column, row, token, ha="center", va="center", fontsize=4)
    show(decoded, tokenizer.detokenize(tokens_Bhw)[0], "decoded")
    alone_NCHW = decode_codes(tokenizer, often_N)
    rows = [torch.cat(list(part), 2) for part in alone_NCHW.split(ALONE)]
    show(codes, torch.cat(rows, 1), f"{ALONE**2} of its codes, each decoded alone")
    figure.savefig(Path(__file__).parent / "assets" / "tokens.png", dpi=110)


def show(axes: Axes, image_CHW: Tensor, title: str) -> None:
    """An image in [-1, 1] without a scale."""
    axes.imshow((image_CHW.permute(1, 2, 0).detach().numpy() + 1) / 2)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


if __name__ == "__main__":
    main()
