"""The tab that shows the codebook, page by page.

Shapes: K codes, N of them on a page.
"""

from collections.abc import Iterator

import gradio as gr
import torch

from stage1_tokenizer.judging.pictures import decode_codes
from web_page.answer import answer
from web_page.components import whole_number
from web_page.fitting import Fitting
from web_page.pictures import Html, sheet
from web_page.run import Run

CODES_ON_A_PAGE = 95  # 5 columns on a phone, 19 on a wide screen
CODE_WIDTH = 56  # CSS pixels at least
BY_NUMBER, MOST_USED, LEAST_USED = "by number", "most used first", "least used first"


def browse(run: Run, order: str, page: int) -> Iterator[Html]:
    """A page of the codebook, counted from 1: each code decoded alone, with its number and use."""
    codes_K = torch.arange(run.tokenizer.codes)
    if order != BY_NUMBER and run.uses_K is not None:
        codes_K = run.uses_K.argsort(descending=order == MOST_USED, stable=True)
    codes_N = codes_K[(int(page) - 1) * CODES_ON_A_PAGE :][:CODES_ON_A_PAGE]
    uses = ["" if run.uses_K is None else f"<br>{abbreviated(int(run.uses_K[code]))}" for code in codes_N.tolist()]
    captions = [f"<b>{code}</b>{use}" for code, use in zip(codes_N.tolist(), uses, strict=True)]
    yield sheet(decode_codes(run.tokenizer, codes_N), CODE_WIDTH, captions)


def abbreviated(number: int) -> str:
    """A number that fits below a small picture."""
    return f"{number:,}" if number < 1_000_000 else f"{number / 1_000_000:,.2f}M"


def codebook_tab(fitting: Fitting, page: gr.Blocks) -> None:
    """Every code, decoded alone."""
    with gr.Row():
        order, number = fitting.add(_order_control), fitting.add(_page_control)
    fitting.add(lambda run: gr.Markdown(_describe_use(run)))
    codes, inputs = gr.HTML(elem_id="codes"), fitting.inputs(order, number)
    for happens in (page.load, order.change, number.change):
        happens(answer(browse, fitting.runs), inputs, codes, show_progress="hidden", trigger_mode="always_last")
    fitting.redo(browse, inputs, codes)


def _order_control(run: Run) -> gr.Radio:
    """In which order the codes are shown."""
    orders = [BY_NUMBER] if run.uses_K is None else [MOST_USED, LEAST_USED, BY_NUMBER]
    return gr.Radio(orders, value=orders[0], label="Order")


def _page_control(run: Run) -> gr.Slider:
    """Which of the codes are shown."""
    pages = -(-run.tokenizer.codes // CODES_ON_A_PAGE)
    return whole_number(1, pages, 1, label=f"Page of {pages}")


def _describe_use(run: Run) -> str:
    """How much of the codebook is in use, where that is known."""
    if run.uses_K is None:
        return "How often codes are used is not known: the tokenizer came without its token cache."
    in_use = (run.uses_K > 0).float().mean().item()
    return (
        "Each code decoded alone; below it its number, and how often it occurs in the cached token grids of the "
        f"images: {in_use:.1%} of all codes do, {int(run.uses_K.sum()):,} times together."
    )
