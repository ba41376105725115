"""The controls that say what is drawn and how: one for each field of `Request`."""

from functools import partial
from typing import get_args

import gradio as gr
from gradio.components import Component

from shared.text import shown
from stage2_prior.decoding.choosing.filters import SamplingConfig
from stage2_prior.decoding.choosing.guidance import GuidanceConfig
from stage2_prior.decoding.particles import PARTICLES
from web_page.components import any_choice, whole_number
from web_page.drawing import ANY_CLASS, page_options
from web_page.fitting import Fitting
from web_page.run import Run

MOST_IMAGES = 64
MOST_PARTICLES_HERE = 256  # a visitor waits


def sampling_controls(fitting: Fitting, num: int, particles: bool = False) -> list[Component]:
    """One control for each field of `Request`, in that order. particles: these, in the place of candidates."""
    with gr.Group():
        how_many = gr.Slider(1, MOST_IMAGES, num, step=1, label="How many", buttons=[])
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, min_width=100)
            label = fitting.add(_class_control)
    with gr.Accordion("How a token is drawn", open=False):
        filters = [fitting.add(partial(_filter_control, name)) for name in SamplingConfig.model_fields]
        autoguidance = fitting.add(_autoguidance_control)
        each = _particles_control() if particles else fitting.add(_candidates_control)
    return [how_many, seed, label, *filters, autoguidance, each, *_guidance_controls(fitting)]


def _class_control(run: Run) -> gr.Dropdown:
    """Which class to draw of."""
    classes = [ANY_CLASS, *map(shown, run.info.class_names or [])]
    return any_choice(gr.Dropdown(classes, value=ANY_CLASS, label="Class", min_width=100))


def _filter_control(name: str, run: Run) -> Component:
    """The control of a filter, as a run is best drawn from: a slider, or where that has no ends a number."""
    field, start = SamplingConfig.model_fields[name], getattr(run.settings.sampling, name)  # None where it is off
    options, label = page_options(field), name.replace("_", "-").capitalize()
    off = options.get("off", field.default)
    start = off if start is None else start
    if options["slider"] is None:
        return gr.Number(start, label=label, precision=0, info=f"{field.description}; {off}: all")
    least, most, step = options["slider"]
    return gr.Slider(least, most, start, step=step, label=label, info=field.description)


def _autoguidance_control(run: Run) -> gr.Slider:
    """How far to keep from what the prior was early in its training."""
    said = "1: none; more draws what the prior has learned since early in its training"
    return gr.Slider(1, 4, run.settings.autoguidance, step=0.1, label="Autoguidance", info=said)


def _candidates_control(run: Run) -> gr.Slider:
    """Of how many drawings one is kept."""
    said = "drawn for each image; one that is neither torn nor flat, as the prior sees it, is kept"
    return gr.Slider(1, 16, run.settings.candidates, step=1, label="Candidates", info=said)


def _particles_control() -> gr.Slider:
    """How many drawings compete to fill a hole."""
    said = "drawn side by side for each image; those that fit what is behind the hole survive"
    return gr.Slider(1, MOST_PARTICLES_HERE, PARTICLES, step=1, label="Particles", info=said)


def _guidance_controls(fitting: Fitting) -> list[Component]:
    """The last fields of `Request`."""
    schedules = get_args(GuidanceConfig.model_fields["schedule"].annotation)
    with gr.Accordion("Guidance towards the class", open=False):
        return [
            fitting.add(_scale_control),
            gr.Dropdown(schedules, value=schedules[0], label="Schedule", info="over the tokens: constant or rising"),
            gr.Slider(0.5, 8, 2.5, step=0.5, label="Power", info="of power-cosine: the larger, the later it rises"),
            *map(fitting.add, (_first_guided, _last_guided)),
        ]


def _scale_control(run: Run) -> gr.Slider:
    """How strong the guidance is."""
    start = run.settings.guidance.scale
    return gr.Slider(0, 10, start, step=0.1, label="Scale", info="1: none; more exaggerates the class")


def _first_guided(run: Run) -> gr.Slider:
    """Where the guidance begins."""
    most, said = run.prior.length - 1, "tokens before this one are not guided"
    return whole_number(0, most, 0, label="From token", info=said)


def _last_guided(run: Run) -> gr.Slider:
    """Where the guidance ends."""
    length, said = run.prior.length, "this one and those behind it are not guided"
    return whole_number(1, length, length, label="To token", info=said)
