"""The tab that shows an image's way to tokens and back.

Shapes: C image channels (3), H and W pixels, h and w the token grid.
"""

from collections.abc import Iterator
from typing import Any

import gradio as gr
import torch
from torch import Tensor

from stage1_tokenizer.judging.pictures import (
    ERROR_LEVELS,
    decode_codes,
    error_picture,
    places_picture,
    token_picture,
)
from stage1_tokenizer.judging.similarity import psnr_of
from web_page.answer import answer, answer_click
from web_page.components import image_input, picture
from web_page.fitting import Fitting
from web_page.pictures import Html, open_picture, pixels, sheet
from web_page.run import Run

CHOSEN_WIDTH = 150  # of the pictures of a clicked token, in CSS pixels at least


def reconstruct(run: Run, path: str | None) -> Iterator[tuple[Any, ...]]:
    """The image as the tokenizer sees it, its reconstruction, tokens and errors, and what is to be known of them.

    Nothing of that where there is no image. Raises UserError where it cannot be read.
    """
    if path is None:
        yield None, None, None, None, "", None, ""
        return
    x_CHW = open_picture(run, path)
    device = run.tokenizer.device
    tokens_1hw = run.tokenizer.tokenize(x_CHW[None].to(device))
    x_hat_CHW = run.tokenizer.detokenize(tokens_1hw).cpu()[0]
    tokens_hw = tokens_1hw.cpu()[0]
    squares_CHW = token_picture(tokens_hw, run.colours_K3, run.token_side)
    views = x_CHW, x_hat_CHW, squares_CHW, error_picture(x_hat_CHW, x_CHW)
    psnr = psnr_of(x_hat_CHW[None], x_CHW[None]).item()
    said = (
        f"PSNR **{psnr:.2f} dB** · {tokens_hw.numel()} tokens, {len(tokens_hw.unique())} of them different, out of "
        f"{run.tokenizer.codes:,} codes"
    )
    middle = len(tokens_hw) // 2, tokens_hw.shape[1] // 2
    yield *map(pixels, views), said, tokens_hw, _token_sheet(run, tokens_hw, *middle)


def show_token(run: Run, clicked: gr.SelectData, tokens_hw: Tensor) -> Iterator[Html]:
    """What the token is that was clicked in the picture of tokens."""
    column, row = (pixel // run.token_side for pixel in clicked.index)
    yield _token_sheet(run, tokens_hw, row, column)


def _token_sheet(run: Run, tokens_hw: Tensor, row: int, column: int) -> Html:
    """The code of the token at a place decoded alone, and where else in the picture that stands."""
    code = int(tokens_hw[row, column])
    chosen_hw = tokens_hw == code
    device = run.tokenizer.device
    x_hat_CHW = run.tokenizer.detokenize(tokens_hw[None].to(device)).cpu()[0]
    views = [decode_codes(run.tokenizer, torch.tensor([code]))[0], places_picture(x_hat_CHW, chosen_hw)]
    use = "" if run.uses_K is None else f"; {int(run.uses_K[code]):,} times in all cached images"
    captions = [
        f"<b>Code {code}</b> (row {row + 1}, column {column + 1}), decoded alone{use}",
        f"It stands in {int(chosen_hw.sum())} of {chosen_hw.numel()} places of this picture",
    ]
    return sheet(views, CHOSEN_WIDTH, captions)


def reconstruct_tab(fitting: Fitting) -> None:
    """An image's way to tokens and back."""
    with gr.Row():
        with gr.Column(scale=1):
            given = image_input()
            said = gr.Markdown()
            gr.Markdown(
                "**Seen** is the middle of your image, at the tokenizer's size. **Tokens** of similar codes have "
                "similar colours: click one to see its code. **Errors** are black where there are none, and "
                f"brightest from {ERROR_LEVELS} of 255 levels on."
            )
            chosen = gr.HTML(elem_id="chosen")
        with gr.Column(scale=2):
            with gr.Row():
                seen, rebuilt = picture("Seen"), picture("Reconstructed")
            with gr.Row():
                grid, error = picture("Tokens", elem_id="tokens"), picture("Errors")
    tokens_hw = gr.State()
    views = [seen, rebuilt, grid, error, said, tokens_hw, chosen]
    given.change(answer(reconstruct, fitting.runs), fitting.inputs(given), views)
    fitting.redo(reconstruct, fitting.inputs(given), views)
    grid.select(
        answer_click(show_token, fitting.runs), fitting.inputs(tokens_hw), chosen, show_progress="hidden",
        trigger_mode="always_last",
    )  # fmt: skip
