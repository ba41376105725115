"""A web page over a prior and its tokenizer: python web.py [--prior RUN] [--tokenizer RUN] [--port 7860]

It draws, reconstructs, completes, shows the codebook, and how the plans of plan.py come along. Works offline, and is
reachable from this computer only unless --host says otherwise. Visitors share the models, which nobody changes; each
chooses one, and draws with a decoder of its own.

Shapes: B batch, C image channels (3), H and W pixels, h and w the token grid, r rows of it, K codes.
"""

import shared  # noqa: F401  # before the libraries, which read their settings on import

# isort: split
import argparse
import base64
import html
import io
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from PIL import Image
from pydantic.fields import FieldInfo
from torch import Tensor

from planning.watching.folders import plan_folders, word_for
from planning.watching.reports import report_at
from planning.watching.view import View, view_of
from shared.data.pictures.decode import UnreadableImage, decode_rgb
from shared.data.pixels import fitted, to_float, to_uint8
from shared.errors import UserError, run_command
from shared.extras import install_hint
from shared.options.commands import command_of
from shared.runs.hub import WHICH_PRIOR, prior_directory, tokenizer_directory
from shared.runs.run_directory import RUNS, WEIGHTS, runs_holding
from shared.runs.token_cache import TokenInfo
from shared.runs.uses import uses_of
from shared.text import shown
from shared.training.devices.device import best_device
from shipped import OPENMOJI
from stage1_tokenizer.judging.pictures import (
    ERROR_LEVELS,
    code_colours,
    cut_picture,
    decode_codes,
    decode_rows,
    error_picture,
    places_picture,
    token_picture,
)
from stage1_tokenizer.judging.similarity import psnr_of
from stage1_tokenizer.tokenizer import Tokenizer, matching_tokenizer
from stage2_prior.class_label import class_label
from stage2_prior.completion import ShownRows, open_photo, paste, usual_margin
from stage2_prior.decoding.decoder import Decoder
from stage2_prior.decoding.filters import SamplingConfig
from stage2_prior.decoding.guidance import GuidanceConfig
from stage2_prior.decoding.settings import DrawingSettings, read_settings
from stage2_prior.decoding.stream import stream
from stage2_prior.prior import Prior, load_prior

try:
    import gradio as gr
    from gradio.blocks import Block
    from gradio.components import Component
    from gradio.data_classes import ImageData
    from gradio.events import Dependency
    from starlette.datastructures import Headers
    from starlette.middleware import Middleware
    from starlette.responses import FileResponse, PlainTextResponse
    from starlette.types import ASGIApp, Receive, Scope, Send
except ModuleNotFoundError as error:
    sys.exit(f"error: the web page needs {error.name}, which is not installed: {install_hint('web')}")

BATCH = 16  # images that grow side by side
MOST_IMAGES = 64
MOST_BYTES = 250_000_000  # of an upload
CODES_ON_A_PAGE = 95  # 5 columns on a phone, 19 on a wide screen
DRAWING_WIDTH, CODE_WIDTH, CHOSEN_WIDTH = 110, 56, 150  # least, in CSS pixels
WIDEST_SHOWN = 1024  # CSS pixels that a picture of the page may have
AT_ONCE = 2  # visitors served at the same time by each button; others queue, and see their place
IN_MEMORY = 3  # priors at the same time, with their tokenizers
EVERY = 3.0  # seconds between two looks at a plan
ANY_CLASS = "any"
BY_NUMBER, MOST_USED, LEAST_USED = "by number", "most used first", "least used first"
ONE_ROW = "This prior's grids have one row of tokens, so none is left to draw below a picture's top."
NO_PLANS = f"<p>There is no plan yet. <code>{command_of('plan')} ~/pictures --hours 2</code> makes one.</p>"
NOTHING_YET = '<div class="sheet">Nothing is drawn yet.</div>'
CSS = """
.sheet { display: grid; gap: 6px }
.sheet figure { margin: 0 }
.sheet img, .pixels img { display: block; width: 100%; image-rendering: pixelated }
.sheet img { border: 1px solid var(--border-color-primary) }
.sheet figcaption { font-size: 12px; line-height: 1.3 }
.pixels img { width: 100% !important; height: auto !important; object-fit: contain !important }
#kept { max-width: 300px }
.pixels .image-frame { width: 100% }
.gradio-container .block .html-container { padding: 0 }
.plan h2 { margin: 12px 0 4px; font-size: 18px; font-weight: 600 }
.plan p, .plan dl, .plan table, .plan figure { margin: 0 0 10px }
.plan p, .plan dd, .plan code { overflow-wrap: anywhere }
.plan a { text-decoration: underline }
.plan table { width: auto; border-width: 0; border-collapse: collapse; text-align: left }
.plan th, .plan td { padding: 4px 14px 4px 0; border-width: 0; vertical-align: top }
.plan tr { border: solid var(--border-color-primary); border-width: 0 0 1px }
.plan progress { appearance: none; width: 100%; min-width: 90px; height: 8px; border: 0 }
.plan progress { background: var(--border-color-primary) }
.plan progress::-webkit-progress-bar { background: var(--border-color-primary) }
.plan progress::-webkit-progress-value { background: var(--color-accent) }
.plan progress::-moz-progress-bar { background: var(--color-accent) }
.plan dt { font-weight: 600 }
.plan pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px }
.plan figcaption { font-size: 13px; line-height: 1.3 }
.plan img { max-width: 100%; height: auto }
.plan .panel, .plan .strip img { width: 100%; max-width: 600px; image-rendering: pixelated }
.plan .figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 6px 14px }
.plan .strip { display: grid; grid-template-columns: repeat(16, 1fr); gap: 4px; max-width: 1060px }
@media (max-width: 500px) {
    .tab-container button { padding: 0 5px }
    .plan .strip { grid-template-columns: repeat(8, 1fr) }
}
"""
# Gradio would not let a rule of `CSS` reach so far out.
NARROW_EDGES = "<style>@media (max-width: 500px) { .gradio-container .main.app { padding: 12px !important } }</style>"
# What a file holds is for the server to say: the page itself knows names only, and would refuse a HEIC or a JPEG that
# is called otherwise.
TAKE_ANY_FILE = """
<script>
const asPictures = files => {
    const taken = new DataTransfer();
    for (const file of files)
        taken.items.add(file.type.startsWith("image/") ? file : new File([file], file.name, {type: "image/unknown"}));
    return taken.files;
};
document.addEventListener("change", event => {
    if (event.target.type === "file") event.target.files = asPictures(event.target.files);
}, true);
document.addEventListener("drop", event => {
    const input = event.target.closest(".block")?.querySelector("input[type=file]");
    if (!input || !event.dataTransfer.files.length) return;
    event.preventDefault();
    event.stopPropagation();
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", {bubbles: true}));
}, true);
</script>
"""

Pixels = np.ndarray  # (H, W, 3) uint8
Html = str
B = TypeVar("B", bound=Block)


@dataclass(frozen=True)
class Run:
    """What the page is about; every visitor who chose it reads it, and nothing writes it.

    tokenizer_at: where its tokenizer was said to be, if it was.
    written: when its weights were, in nanoseconds since 1970.
    uses_K: how often each code occurs in the token grids that priors learn from; None where that is not known.
    settings: what the controls begin with.
    """

    name: str
    directory: Path
    tokenizer_at: Path | None
    written: int
    prior: Prior
    info: TokenInfo
    tokenizer: Tokenizer
    uses_K: Tensor | None
    colours_K3: Tensor
    settings: DrawingSettings = field(default_factory=DrawingSettings)
    idle: deque[Decoder] = field(default_factory=deque)

    @contextmanager
    def decoder(self) -> Iterator[Decoder]:
        """A decoder for one visitor: one that is idle, or another where none is."""
        try:
            decoder = self.idle.pop()
        except IndexError:
            decoder = Decoder(self.prior, rows=BATCH)
        try:
            yield decoder
        finally:
            self.idle.append(decoder)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return self.info.data.height_width

    @property
    def token_side(self) -> int:
        """Side of a token in the picture of tokens, in pixels: Gradio takes clicks on no picture shown enlarged."""
        return -(-WIDEST_SHOWN // max(self.prior.grid))

    @property
    def outdated(self) -> bool:
        """Whether it was trained on since it was loaded; not where its weights are gone."""
        return when_written(self.directory) not in (self.written, None)


class Runs:
    """The priors that visitors choose from, by name.

    Each is loaded when it is first chosen, and again once it was trained on; the last few chosen stay in memory.
    """

    def __init__(self, first: Run) -> None:
        self.begun_with, self.directory, self.tokenizer_at = first.name, first.directory, first.tokenizer_at
        self.loaded = OrderedDict({first.name: first})
        self.lock = Lock()

    def directories(self) -> dict[str, Path]:
        """The run that the page began with, those under runs/ that have weights, the last trained first, and the model
        that comes along."""
        others = [path for path in (*reversed(runs_holding("prior", WEIGHTS[1])), OPENMOJI) if path != self.directory]
        return {self.begun_with: self.directory, **{name_of(path): path for path in others}}

    def of(self, name: str) -> Run:
        """The run of a name. Raises UserError where there is none, or it cannot be loaded."""
        directory = self.directories().get(name)
        if directory is None:
            raise UserError(f"{name}: there is no such prior any more: choose another, or load this page again")
        with self.lock:
            run = self.loaded.get(name)
            if run is None or run.outdated:
                run = load_run(directory, self.tokenizer_at if name == self.begun_with else None)
            self.loaded[name] = run
            self.loaded.move_to_end(name)
            if len(self.loaded) > IN_MEMORY:
                self.loaded.popitem(last=False)
        return run


class Request(NamedTuple):
    """What the sampling controls say, in their order on the page."""

    num: int
    seed: int | None
    label: str
    filters: Sequence[float]
    scale: float
    schedule: str
    power: float
    guide_from: int
    guide_to: int

    @classmethod
    def of(cls, values: Sequence[Any]) -> "Request":
        """From the values of all controls."""
        num, seed, label, *others = values
        filters = len(SamplingConfig.model_fields)
        return cls(num, seed, label, others[:filters], *others[filters:])

    def sampling(self) -> SamplingConfig:
        """How a token is drawn; UserError for what is out of range."""
        named = zip(SamplingConfig.model_fields.items(), self.filters, strict=True)
        chosen = {name: value for (name, field), value in named if value not in (None, page_options(field).get("off"))}
        return SamplingConfig(**chosen)

    def guidance(self) -> GuidanceConfig:
        """How the tokens of a grid are guided; UserError for what is out of range."""
        schedule: Any = self.schedule
        power = self.power if schedule == "power-cosine" else None
        return GuidanceConfig(
            scale=self.scale, schedule=schedule, power=power, interval=(self.guide_from, self.guide_to)
        )


# What the tabs do


def draw(run: Run, *values: Any) -> Generator[Html, None, None]:
    """New images, again and again while they grow."""
    no_prefix_1K = torch.empty(1, 0, dtype=torch.long)
    for images_BCHW in growing(run, Request.of(values), no_prefix_1K):
        yield sheet(images_BCHW, DRAWING_WIDTH)


def growing(run: Run, request: Request, prefix_1K: Tensor) -> Iterator[Tensor]:
    """All images (num, 3, H, W) of a request, grey where they are not drawn yet; each begins with the prefix."""
    if request.seed is None:
        raise UserError("the seed is empty: give a whole number, 0 or more")
    label = class_label(None if request.label == ANY_CLASS else request.label, run.info.class_names)
    sampling, scale_L = request.sampling(), request.guidance().scales(run.prior.length)
    images_BCHW = torch.zeros(request.num, 3, *run.size)
    with run.decoder() as decoder:
        for begin in range(0, request.num, BATCH):
            numbers = range(begin, min(begin + BATCH, request.num))
            draw_batch = partial(
                decoder.generate, numbers, request.seed, sampling, cfg_scale=scale_L,
                labels_B=None if label is None else torch.full((len(numbers),), label),
                prefix_tokens_BK=prefix_1K.expand(len(numbers), -1),
            )  # fmt: skip
            with closing(stream(partial(telling_rows, draw_batch))) as growing_Brw:  # so no decoder is lent that draws
                for tokens_Brw in growing_Brw:
                    images_BCHW[numbers.start : numbers.stop] = decode_rows(
                        run.tokenizer, tokens_Brw, run.prior.grid[0]
                    )
                    yield images_BCHW


def telling_rows(draw_batch: Callable[..., Tensor], on_row: Callable[[Tensor], None]) -> Tensor:
    """`draw_batch`, which tells each row of tokens that it has drawn."""
    return draw_batch(on_row=on_row)


def reconstruct(run: Run, path: str | None) -> Iterator[tuple[Any, ...]]:
    """The image as the tokenizer sees it, its reconstruction, tokens and errors, and what is to be known of them."""
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
    yield *map(pixels, views), said, tokens_hw, token_sheet(run, tokens_hw, *middle)


def show_token(run: Run, clicked: gr.SelectData, tokens_hw: Tensor) -> Iterator[Html]:
    """What the token is that was clicked in the picture of tokens."""
    column, row = (pixel // run.token_side for pixel in clicked.index)
    yield token_sheet(run, tokens_hw, row, column)


def token_sheet(run: Run, tokens_hw: Tensor, row: int, column: int) -> Html:
    """A token's code decoded alone, and where else in the picture that stands."""
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


def show_cut(run: Run, path: str | None, rows: int) -> Iterator[Pixels | None]:
    """The image with the cut line on it."""
    if path is None:
        yield None
    else:
        yield pixels(cut_picture(open_picture(run, path), run.size[0] * rows // run.prior.grid[0]))


def complete(
    run: Run, path: str | None, kept_rows: int, margin: int, keep_pixels: bool, *values: Any
) -> Iterator[Html]:
    """Several ways to complete an image below the cut line, again and again while they grow."""
    if path is None:
        raise UserError("there is no image to complete: drop one first")
    open_picture(run, path)  # says more kindly than `open_photo` that a file is no picture
    rows = ShownRows(kept_rows, margin, run.prior.grid[0])
    photo = open_photo(Path(path), run.size, rows, run.info.data.whole_reading)
    device = run.tokenizer.device
    prefix_1K = rows.prefix(run.tokenizer.tokenize(photo.shown_CHW[None].to(device)).cpu())
    for images_BCHW in growing(run, Request.of(values), prefix_1K):
        if keep_pixels:
            originals_BCHW = photo.original_CHW.expand_as(images_BCHW)
            images_BCHW = paste(images_BCHW, originals_BCHW, rows.pixels(run.size[0]))
        yield sheet(images_BCHW, DRAWING_WIDTH)


def browse(run: Run, order: str, page: int) -> Iterator[Html]:
    """A page of the codebook: each code decoded alone, with its number and use."""
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


def open_picture(run: Run, path: str) -> Tensor:
    """A visitor's picture (3, H, W) in [-1, 1], cropped and resized as validation images are."""
    try:
        image = decode_rgb(path, run.info.data.whole_reading)
    except UnreadableImage as error:
        raise UserError(
            f"{Path(path).name} cannot be read as a picture: {error}. Try a PNG or a JPEG, whole and of at most "
            f"{run.info.data.max_pixels:,} pixels"
        ) from None
    return to_float(fitted(image, run.size))


def pixels(image_CHW: Tensor) -> Pixels:
    """An image in [-1, 1] as the browser wants it."""
    return to_uint8(image_CHW).permute(1, 2, 0).numpy()


def sheet(images_BCHW: Sequence[Tensor] | Tensor, width: int, captions: Sequence[Html] = ()) -> Html:
    """Images in as many columns of at least `width` CSS pixels as there is room for."""
    figures = [
        f'<figure><img alt="" src="{data_url(image_CHW)}"><figcaption>{caption}</figcaption></figure>'
        for image_CHW, caption in zip(images_BCHW, captions or [""] * len(images_BCHW), strict=True)
    ]
    columns = f"grid-template-columns: repeat(auto-fill, minmax({width}px, 1fr))"
    return f'<div class="sheet" style="{columns}">{"".join(figures)}</div>'


def data_url(image_CHW: Tensor) -> str:
    """An image as a PNG inside an address."""
    file = io.BytesIO()
    Image.fromarray(pixels(image_CHW)).save(file, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# The page


def answer(handler: Callable[..., Iterator[Any]], runs: Runs) -> Callable[..., Iterator[Any]]:
    """`handler` of the run that the last value names, for Gradio: a mistake of the visitor's becomes a message."""

    def answering(*values: Any) -> Iterator[Any]:
        *values_but_name, name = values
        try:
            yield from handler(runs.of(name), *values_but_name)
        except UserError as error:
            raise not_possible(str(error)) from None

    answering.__name__ = handler.__name__  # and not its signature, which Gradio would count the controls against
    return answering


def not_possible(message: str) -> gr.Error:
    """A message on the page. What Gradio shows may be HTML, and the message may quote a file name."""
    return gr.Error(html.escape(message), title="Not possible", print_exception=False)


def answer_click(handler: Callable[..., Iterator[Any]], runs: Runs) -> Callable[..., Iterator[Any]]:
    """`answer` for a handler that is told first which pixel of a picture was clicked."""
    answering = answer(handler, runs)

    def answering_click(clicked: gr.SelectData, *values: Any) -> Iterator[Any]:
        yield from answering(clicked, *values)

    answering_click.__name__ = handler.__name__
    return answering_click


class Fitting:
    """The menu of priors, and what of the page depends on the one that is chosen there.

    Such a part is made for the first prior, and made again for another: Gradio takes the new one for how the part that
    is there is to be from then on.
    """

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.menu = any_choice(gr.Dropdown(list(runs.directories()), value=runs.begun_with, label="Prior"))
        self.makers: list[Callable[[Run], Block]] = []
        self.parts: list[Block] = []
        self.redone: list[tuple[Callable[..., Iterator[Any]], list[Component], Any]] = []

    def add(self, make: Callable[[Run], B]) -> B:
        """A part of the page, as `make` makes it for a run."""
        part = make(self.runs.of(self.runs.begun_with))
        self.makers.append(make)
        self.parts.append(part)
        return part

    def inputs(self, *components: Component) -> list[Component]:
        """What a handler is told: what these say, and which prior is chosen."""
        return [*components, self.menu]

    def redo(self, handler: Callable[..., Iterator[Any]], inputs: list[Component], outputs: Any) -> None:
        """Call a handler of a run anew whenever another is chosen."""
        self.redone.append((handler, inputs, outputs))

    def connect(self, drawings: list[Dependency]) -> None:
        """Let the page follow the menu; call it once all is there. drawings: what ends when another prior is chosen."""
        chosen = self.menu.change(
            answer(self.refit, self.runs), self.menu, self.parts, cancels=[*drawings], api_visibility="private"
        )
        for handler, inputs, outputs in self.redone:
            chosen.success(
                answer(handler, self.runs), inputs, outputs, show_progress="hidden", api_visibility="private"
            )

    def refit(self, run: Run) -> Iterator[list[Block]]:
        """All parts, as they are for a run."""
        yield [make(run) for make in self.makers]


def any_choice(menu: gr.Dropdown) -> gr.Dropdown:
    """Leave it to the handlers to refuse what is not on a menu: it may have become longer since the page was made."""
    menu.preprocess = lambda payload: payload  # type: ignore[method-assign]
    return menu


def build_page(run: Run) -> gr.Blocks:
    """The page, which begins with a run; `launch` serves it."""
    runs = Runs(run)
    with gr.Blocks(title="Tessera", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# Tessera")
        fitting = Fitting(runs)
        fitting.add(lambda run: gr.Markdown(describe(run)))
        with gr.Tabs(overflow_behavior="wrap") as tabs:
            with gr.Tab("Draw", id="Draw"):
                drawing = draw_tab(fitting)
            with gr.Tab("Reconstruct"):
                reconstruct_tab(fitting)
            with gr.Tab("Complete"):
                completing = complete_tab(fitting)
            with gr.Tab("Codebook"):
                codebook_tab(fitting, page)
            with gr.Tab("Plans") as plans:
                plans_tab(fitting, tabs, plans)
        fitting.connect([drawing, completing])
        page.load(lambda: gr.Dropdown(choices=list(runs.directories())), outputs=fitting.menu, api_visibility="private")
    page.queue(default_concurrency_limit=AT_ONCE)
    return page


def describe(run: Run) -> str:
    """What a run draws."""
    (rows, columns), (height, width) = run.prior.grid, run.size
    return f"Images of {width} × {height} pixels as {columns} × {rows} tokens out of {run.tokenizer.codes:,} codes."


def draw_tab(fitting: Fitting) -> Dependency:
    """Samples, growing while they are drawn; returns what starts them."""
    with gr.Row():
        with gr.Column(scale=1):
            start, stop = start_and_stop("Draw")
            controls = sampling_controls(fitting, num=16)
        with gr.Column(scale=2):
            images = fitting.add(lambda _: gr.HTML(NOTHING_YET, elem_id="drawn"))
    drawing = start.click(answer(draw, fitting.runs), fitting.inputs(*controls), images, show_progress="minimal")
    stop.click(None, cancels=drawing)
    return drawing


def start_and_stop(label: str) -> tuple[gr.Button, gr.Button]:
    """The buttons of something that takes a while."""
    with gr.Row():
        return gr.Button(label, variant="primary", min_width=100), gr.Button("Stop", min_width=100)


def sampling_controls(fitting: Fitting, num: int) -> list[Component]:
    """One control for each field of `Request`, in that order."""
    with gr.Group():
        how_many = gr.Slider(1, MOST_IMAGES, num, step=1, label="How many", buttons=[])
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, min_width=100)
            label = fitting.add(class_control)
    with gr.Accordion("How a token is drawn", open=False):
        filters = [fitting.add(partial(filter_control, name)) for name in SamplingConfig.model_fields]
    return [how_many, seed, label, *filters, *guidance_controls(fitting)]


def class_control(run: Run) -> gr.Dropdown:
    """Which class to draw of."""
    classes = [ANY_CLASS, *map(shown, run.info.class_names or [])]
    return any_choice(gr.Dropdown(classes, value=ANY_CLASS, label="Class", min_width=100))


def filter_control(name: str, run: Run) -> Component:
    """The control of a filter, as a run is best drawn from: a slider, or where that has no ends a number."""
    field, start = SamplingConfig.model_fields[name], getattr(run.settings.sampling, name)  # None where it is off
    options, label = page_options(field), name.replace("_", "-").capitalize()
    off = options.get("off", field.default)
    start = off if start is None else start
    if options["slider"] is None:
        return gr.Number(start, label=label, precision=0, info=f"{field.description}; {off}: all")
    least, most, step = options["slider"]
    return gr.Slider(least, most, start, step=step, label=label, info=field.description)


def page_options(field: FieldInfo) -> dict[str, Any]:
    """What a field of `SamplingConfig` says of its control."""
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra


def guidance_controls(fitting: Fitting) -> list[Component]:
    """The last fields of `Request`."""
    schedules = get_args(GuidanceConfig.model_fields["schedule"].annotation)
    with gr.Accordion("Guidance towards the class", open=False):
        return [
            fitting.add(scale_control),
            gr.Dropdown(schedules, value=schedules[0], label="Schedule", info="over the tokens: constant or rising"),
            gr.Slider(0.5, 8, 2.5, step=0.5, label="Power", info="of power-cosine: the larger, the later it rises"),
            *map(fitting.add, (first_guided, last_guided)),
        ]


def scale_control(run: Run) -> gr.Slider:
    """How strong the guidance is."""
    start = run.settings.guidance.scale
    return gr.Slider(0, 10, start, step=0.1, label="Scale", info="1: none; more exaggerates the class")


def first_guided(run: Run) -> gr.Slider:
    """Where the guidance begins."""
    most, said = run.prior.length - 1, "tokens before this one are not guided"
    return whole_number(0, most, 0, label="From token", info=said)


def last_guided(run: Run) -> gr.Slider:
    """Where the guidance ends."""
    length, said = run.prior.length, "this one and those behind it are not guided"
    return whole_number(1, length, length, label="To token", info=said)


def whole_number(least: int, most: int, start: int, **options: Any) -> gr.Slider:
    """A slider, which cannot be moved where there is nothing to choose."""
    free = least < most
    return gr.Slider(
        least, most if free else least + 1, max(least, start), step=1, buttons=[], interactive=free, **options
    )


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


def complete_tab(fitting: Fitting) -> Dependency:
    """An image cut, and drawn on from there; returns what starts that."""
    fitting.add(lambda run: gr.Markdown(ONE_ROW, visible=not completes(run)))
    with fitting.add(lambda run: gr.Row(visible=completes(run))):
        with gr.Column(scale=1):
            given = image_input()
            cut = fitting.add(cut_control)
            shown = picture("What is kept, above the line", elem_id="kept")
            start, stop = start_and_stop("Complete")
        with gr.Column(scale=2):
            images = fitting.add(lambda _: gr.HTML(NOTHING_YET, elem_id="completed"))
            keep_pixels = gr.Checkbox(True, label="Put the kept pixels back over the result")
            margin = fitting.add(margin_control)
            controls = sampling_controls(fitting, num=4)
    for change in (given.change, cut.change):
        change(
            answer(show_cut, fitting.runs), fitting.inputs(given, cut), shown, show_progress="hidden",
            trigger_mode="always_last",
        )  # fmt: skip
    fitting.redo(show_cut, fitting.inputs(given, cut), shown)
    values = fitting.inputs(given, cut, margin, keep_pixels, *controls)
    drawing = start.click(answer(complete, fitting.runs), values, images, show_progress="minimal")
    stop.click(None, cancels=drawing)
    return drawing


def completes(run: Run) -> bool:
    """Whether a row of tokens is left to draw below a picture's top."""
    return run.prior.grid[0] > 1


def cut_control(run: Run) -> gr.Slider:
    """How much of an image is kept."""
    rows = run.prior.grid[0]
    return whole_number(1, rows - 1, rows // 2, label="Rows of tokens to keep", elem_id="cut")


def margin_control(run: Run) -> gr.Slider:
    """How much of that is drawn anew."""
    rows = run.prior.grid[0]
    redrawn = usual_margin(rows, run.tokenizer.sees_neighbours)
    return whole_number(0, rows - 2, redrawn, label="Margin", info="rows above the cut drawn anew, to fit")


def codebook_tab(fitting: Fitting, page: gr.Blocks) -> None:
    """Every code, decoded alone."""
    with gr.Row():
        order, number = fitting.add(order_control), fitting.add(page_control)
    fitting.add(lambda run: gr.Markdown(describe_use(run)))
    codes, inputs = gr.HTML(elem_id="codes"), fitting.inputs(order, number)
    for happens in (page.load, order.change, number.change):
        happens(answer(browse, fitting.runs), inputs, codes, show_progress="hidden", trigger_mode="always_last")
    fitting.redo(browse, inputs, codes)


def order_control(run: Run) -> gr.Radio:
    """In which order the codes are shown."""
    orders = [BY_NUMBER] if run.uses_K is None else [MOST_USED, LEAST_USED, BY_NUMBER]
    return gr.Radio(orders, value=orders[0], label="Order")


def page_control(run: Run) -> gr.Slider:
    """Which of the codes are shown."""
    pages = -(-run.tokenizer.codes // CODES_ON_A_PAGE)
    return whole_number(1, pages, 1, label=f"Page of {pages}")


def describe_use(run: Run) -> str:
    """How much of the codebook is in use, where that is known."""
    if run.uses_K is None:
        return "How often codes are used is not known: the tokenizer came without its token cache."
    in_use = (run.uses_K > 0).float().mean().item()
    return (
        "Each code decoded alone; below it its number, and how often it occurs in the cached token grids of the "
        f"images: {in_use:.1%} of all codes do, {int(run.uses_K.sum()):,} times together."
    )


def plans_tab(fitting: Fitting, tabs: gr.Tabs, tab: gr.Tab) -> None:
    """How a plan comes along, and what became of it: looked at every few seconds while this tab is open."""
    with gr.Row():
        menu = any_choice(gr.Dropdown([], label="Plan", info="the one last worked on first", scale=3))
        use = gr.Button("Draw with its prior", visible=False, min_width=160)
    parts = [gr.HTML(elem_id=f"plan-{name}", elem_classes="plan") for name in View._fields]
    known, timer = gr.State(()), gr.Timer(EVERY, active=False)
    look = partial(show_plan, fitting.runs)
    gr.on(
        [tab.select, timer.tick, menu.change], look, [menu, known], [menu, *parts, use, known],
        show_progress="hidden", trigger_mode="always_last", api_name="show_plan",
    )  # fmt: skip
    tabs.select(is_plans, None, timer, show_progress="hidden", api_visibility="private")
    use.click(partial(use_prior, fitting.runs), menu, [fitting.menu, tabs, timer], api_visibility="private")


def is_plans(tab: gr.SelectData) -> gr.Timer:
    """Looks at plans while their tab is open."""
    return gr.Timer(active=tab.value == "Plans")


def show_plan(runs: Runs, name: str | None, known: Sequence[int]) -> tuple[Any, ...]:
    """What changed of a plan's part of the page: the menu, each part of the view, whether its prior can be used.

    known: hashes of what the visitor sees, which is returned anew; what is the same is not sent again.
    """
    folders = plan_folders()
    name = name if name in folders else next(iter(folders), None)
    words = [(f"{each}: {word_for(folder)}", each) for each, folder in folders.items()]
    view = View(NO_PLANS) if name is None else view_of(folders[name])
    usable = name is not None and prior_of(name) in runs.directories()
    updates = [
        (gr.Dropdown(choices=words, value=name), (words, name)),
        *((part, part) for part in view),
        (gr.Button(visible=usable), usable),
    ]
    hashes = [hash(str(seen)) for _, seen in updates]
    before: Sequence[int | None] = known or [None] * len(hashes)
    changes = (
        gr.skip() if old == new else update for (update, _), old, new in zip(updates, before, hashes, strict=True)
    )
    return *changes, hashes


def prior_of(plan: str) -> str:
    """What the prior of a plan is called on the menu."""
    return name_of(RUNS / "prior" / plan)


def use_prior(runs: Runs, plan: str) -> tuple[gr.Dropdown, gr.Tabs, gr.Timer]:
    """Chooses the prior of a plan, and goes to where it draws."""
    menu = gr.Dropdown(choices=list(runs.directories()), value=prior_of(plan))
    return menu, gr.Tabs(selected="Draw"), gr.Timer(active=False)


def image_input() -> gr.Image:
    """Where a visitor drops a picture. The file itself is passed on: reading it is `open_picture`'s.

    Gradio would open it first, and show its innards where that fails.
    """
    given = gr.Image(type="filepath", sources=["upload", "clipboard"], label="Your image", height=230)
    given.preprocess = partial(uploaded, Path(given.GRADIO_CACHE))  # type: ignore[method-assign]
    return given


def uploaded(folder: Path, payload: ImageData | None) -> str | None:
    """The path of an uploaded file, None where there is none; a message for what is not in the uploads' `folder`.

    Else a program could name any picture of this computer, and see it.
    """
    if payload is None:
        return None
    if not payload.path or not Path(payload.path).resolve().is_relative_to(folder.resolve()):
        raise not_possible("no picture was uploaded: upload the file itself, not where it is")
    return payload.path


def picture(caption: str, elem_id: str | None = None) -> gr.Image:
    """A place for an image of few pixels, shown large, below its caption."""
    with gr.Column(min_width=130):
        gr.Markdown(caption)
        return gr.Image(
            format="png", interactive=False, show_label=False, buttons=[], elem_classes="pixels", elem_id=elem_id
        )


# The command


def load_run(prior_run: Path, tokenizer_run: Path | None) -> Run:
    """The prior of a run directory and its tokenizer, on the best device. Raises UserError where they are not."""
    device = best_device()
    when = when_written(prior_run)  # before they are read: what is written meanwhile is then read again
    prior, info = load_prior(prior_run)
    tokenizer = matching_tokenizer(info, prior_run, tokenizer_run)
    colours_K3 = code_colours(tokenizer.quantiser.codes_KD.detach())
    directory = tokenizer_run or tokenizer_directory(prior_run, info.tokenizer)
    uses_K, settings = uses_of(directory, info.fingerprint), read_settings(prior_run)
    prior, tokenizer = prior.to(device), tokenizer.to(device)
    origin = name_of(prior_run), prior_run, tokenizer_run, when or 0
    return Run(*origin, prior, info, tokenizer, uses_K, colours_K3, settings)


def name_of(prior_run: Path) -> str:
    """What a run is called on the page."""
    return "OpenMoji, the model that comes along" if prior_run == OPENMOJI else shown(str(prior_run))


def when_written(prior_run: Path) -> int | None:
    """When the weights of a run were written, in nanoseconds since 1970; None where they are gone."""
    try:
        return (prior_run / WEIGHTS[1]).stat().st_mtime_ns
    except OSError:
        return None


class UploadLimit:
    """An ASGI application that refuses uploads of more than `MOST_BYTES` in our words, and passes on all else."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"].endswith("/upload"):
            size = Headers(scope=scope).get("content-length", "of unknown size")
            if not size.isdecimal() or int(size) > MOST_BYTES:
                answer = PlainTextResponse(
                    f"the upload is too large ({size} bytes), and this page takes {MOST_BYTES / 1e6:,.0f} MB: make the "
                    "picture smaller, or save it as a JPEG",
                    status_code=413,
                )
                return await answer(scope, receive, send)
        await self.app(scope, receive, send)


class Reports:
    """An ASGI application that gives out the pages which plans and trainings wrote, and passes on all else."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = report_at(scope["path"]) if scope["type"] == "http" and scope["method"] == "GET" else None
        await (self.app if path is None else FileResponse(path))(scope, receive, send)


def serve(run: Run, host: str, port: int | None) -> gr.Blocks:
    """The page, served from a thread of its own until it is closed. Raises UserError where the port is taken."""
    page = build_page(run)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        page.launch(
            server_name=host, server_port=port, share=False, ssr_mode=False, theme=theme, css=CSS, show_error=True,
            footer_links=[], run_history=False, prevent_thread_lock=True, quiet=True,
            head=NARROW_EDGES + TAKE_ANY_FILE,
            app_kwargs={"middleware": [Middleware(UploadLimit), Middleware(Reports)]},
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"cannot serve on {host}, port {port or 'from 7860 on'}: {error}. Try another --port") from None
    return page


def main() -> None:
    """Read the command line, load, serve until stopped."""
    parser = argparse.ArgumentParser(prog=command_of("web"), description=__doc__.split("\n")[0])
    parser.add_argument("--prior", type=Path, metavar="RUN", help=f"the prior: {WHICH_PRIOR}")
    parser.add_argument("--tokenizer", type=Path, metavar="RUN", help="where its tokenizer is now, if it was moved")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: reachable from other computers too")
    parser.add_argument("--port", type=int, help="default: the first that is free from 7860 on")
    args = parser.parse_args()
    run = load_run(prior_directory(args.prior), args.tokenizer)
    page = serve(run, args.host, args.port)
    print(f"{run.name}: open {page.local_url} (stop with Ctrl-C)", flush=True)
    page.block_thread()


if __name__ == "__main__":
    run_command(main)
