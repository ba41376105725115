"""What a plan chooses besides the size of its images, by rules that anybody can read.

Those for a CPU were read off trainings on one, of tokens out of 1,024 codes (docs/plan.md, docs/bundled-model.md).
Those for a GPU are the presets' of configs/prior; no plan was trained on one yet.
"""

import math
from collections.abc import Sequence

from planning.choice.prior_size import PriorSize
from planning.choice.setting import Setting
from planning.choice.shape import Shape
from planning.choice.stage import run_of
from planning.survey.machine import Machine
from planning.survey.pictures import MANY, Pictures
from planning.survey.pieces import HELD_OUT
from shared.runs.hub import BUNDLED_TOKENIZER
from stage1_tokenizer.losses.discriminators import PatchganConfig, minimum_size

LARGE = 30_000  # pictures from which two views of each are enough
IMAGES_BEFORE_CODES = 2_000  # that an encoder sees before the codebook is made of its vectors
SMALLEST_PERCEPTUAL = 32  # pixels of the shorter side from which the perceptual loss is used
OTHER_START = ("init", "model.backbone")  # changes that leave no use for the bundled tokenizer's weights
PICTURES_A_CLASS = 10
RATE_TIMES_WIDTH = 0.4  # a prior's learning rate falls as its width grows, as in muP
DROPOUT = ((10, 0.0), (30, 0.1), (60, 0.2), (math.inf, 0.3))  # for priors that see a picture fewer times than that
TOKENS_A_CODE = 150  # of one view of all pictures: fewer, and a prior learns little of a code


def tokenizer_settings(
    source: str | list[str], pictures: Pictures, machine: Machine, shape: Shape, patch: int | None = None,
    changes: Sequence[str] = (),
) -> list[Setting]:  # fmt: skip
    """Stage one, but for its length. patch: of the backbone, where the user's changes turn it into that of `shape`.

    changes: the user's `key=value`, which are not applied here; what they rule out is not chosen.
    """
    on_cpu = machine.kind == "cpu"
    codes = codes_for(pictures, shape, machine)
    settings = [
        Setting("data.source", source),
        Setting("data.image_size", [shape.height, shape.width], size_reason(pictures, shape)),
        Setting("data.workers", 0 if on_cpu else min(8, max(1, machine.cores - 1))),
        Setting("data.augment", {"crop_scale": [0.9, 1.0], "flip": 0.5, "sharpness": 0.0, "autocontrast": 0.0},
            "mirrored and slightly cropped; take data.augment.flip=0 where left and right differ, as in writing"),
        Setting("model.backbone", backbone(patch or shape.patch, machine),
            "conv, with LayerScale: it was best in every comparison"),
        Setting("model.quantiser", {
            "kind": "vector", "codes": codes, "dim": 16, "warm_up": max(1, IMAGES_BEFORE_CODES * shape.tokens // codes),
            "commitment_weight": 1.0, "codebook_weight": 0.25,
        }, f"{codes:,} codes: one view of the pictures has {pictures.train * shape.tokens / codes:,.0f} tokens a code"),
        Setting("loss.reconstruction", {"l2": 1.0, "l1": 0.1}),
        Setting("training.batch_size", 16 if on_cpu else 32),
        Setting("training.optimizer", "muon"),
        Setting("training.learning_rate", 2.0e-3 if on_cpu else 6.0e-4),
        Setting("training.final_learning_rate", 0.02),
        Setting("training.warm_up", 1600),
        Setting("training.ema_decay", 0.998),
    ]  # fmt: skip
    if on_cpu and not any(change.startswith(OTHER_START) for change in changes):
        said = "the bundled tokenizer's weights, but for its codes: training begins with edges and flat colours known"
        settings += [
            Setting("init", BUNDLED_TOKENIZER, said),
            Setting("init_without", ["quantiser"]),
        ]
    if pictures.pieces:
        settings.append(Setting("data.held_out", HELD_OUT, "the end of the picture, which no other piece shows"))
    if pictures.held_out_share:
        settings.append(Setting("data.validation_fraction", pictures.held_out_share))
    if pictures.classes and not tells_classes(pictures):
        said = f"{pictures.classes:,} classes are left out: fewer than {PICTURES_A_CLASS} pictures each"
        settings.append(Setting("data.labels", "none", said))
    if not on_cpu and min(shape.height, shape.width) >= SMALLEST_PERCEPTUAL:
        settings.append(
            Setting("loss.perceptual", {"kind": "stlpips", "weight": 0.1}, "sharper pictures, which a GPU has time for")
        )
    return settings


def decoder_settings(name: str, machine: Machine, shape: Shape) -> list[Setting]:
    """What the training of the plan `name`'s decoder has otherwise than that of its tokenizer.

    Images too small for any discriminator are decoded as their pixels alone teach it.
    """
    width, most = (32, 2) if machine.kind == "cpu" else (64, 3)
    judges = (PatchganConfig(norm="group", width=width, layers=layers) for layers in range(most, 0, -1))
    judge = next((judge for judge in judges if minimum_size(judge) <= min(shape.height, shape.width)), None)
    settings = [
        Setting("init", str(run_of("tokenizer", name))),
        Setting("init_without", []),
        Setting("training.decoder_only", True),
        Setting("training.optimizer", "adamw"),
        Setting("training.learning_rate", 5.0e-4),
        Setting("training.warm_up", 500),
    ]
    if judge is None:
        return settings
    return [
        *settings,
        Setting("loss.adversarial", {
            "discriminator": judge.model_dump(),
            "weight": 0.8, "matching": 2.0, "start": 0.0, "warm_up": 0.05, "ramp": 0.1, "learning_rate": 7.0e-4,
            "translation": shape.patch, "repetition": 2.0,
        }, "a discriminator, and what it sees in pictures: decoded ones become sharper and keep their tokens"),
    ]  # fmt: skip


def prior_settings(name: str, pictures: Pictures, machine: Machine, size: PriorSize, epochs: float) -> list[Setting]:
    """Stage two of the plan `name`, but for its length. epochs: how often it sees each picture."""
    on_cpu = machine.kind == "cpu"
    dropout = dropout_for(epochs)
    model = {"kind": "gpt", **size._asdict(), "positions": "rotary", "dropout": dropout}
    if tells_classes(pictures):
        model |= {"conditioning": "norm", "label_dropout": 0.15}
    return [
        Setting("tokens", str(run_of("decoder", name) / "tokens")),
        Setting("model", model, f"dropout {dropout:g}, as it sees each picture {epochs:.3g} times"),
        Setting("training.batch_size", 16 if on_cpu else 64),
        Setting("training.optimizer", "muon"),
        Setting("training.learning_rate", round(RATE_TIMES_WIDTH / size.width, 5)),
        Setting("training.final_learning_rate", 0.02),
        Setting("training.warm_up", 2000),
        Setting("training.ema_decay", 0.998 if on_cpu else 0.999),
    ]


def dropout_for(epochs: float) -> float:
    """How much dropout a prior gets: as little as keeps it from learning by heart what it sees so often."""
    return next(share for most, share in DROPOUT if epochs < most)


def tells_classes(pictures: Pictures) -> bool:
    """Whether the prior is told the class of each picture: where there are enough pictures of each."""
    return 0 < pictures.classes * PICTURES_A_CLASS <= pictures.train


def codes_for(pictures: Pictures, shape: Shape, machine: Machine) -> int:
    """How many codes: few for few pictures, so that each comes often enough for a prior to learn what it means."""
    if pictures.train * shape.tokens < TOKENS_A_CODE * 1024:
        return 256
    if machine.kind == "cpu" or pictures.train < MANY:
        return 1024
    return 4096 if pictures.train < 10 * MANY else 16384


def backbone(patch: int, machine: Machine) -> dict[str, object]:
    """The tokenizer's; `stem` x 2 for each further width is the patch."""
    on_cpu = machine.kind == "cpu"
    two_scales = on_cpu or patch <= 4  # high resolutions cost most
    stem = patch // 2 if two_scales else patch // 4
    widths = [64, 160] if on_cpu else [128, 256]
    if not two_scales:
        widths = [widths[0], (widths[0] + widths[1]) // 2 // 16 * 16, widths[1]]
    return {
        "kind": "conv", "stem": stem, "widths": widths, "depths": [2] * len(widths), "kernel_size": 3,
        "transformer_layers": 0, "layer_scale": 0.1,
    }  # fmt: skip


def views_for(pictures: Pictures) -> int:
    """Views of each picture in the token cache, where there is time for them."""
    return 16 if pictures.train < LARGE else 2 if pictures.train < 10 * MANY else 1


def cache_settings(used: Pictures, views: int, all_of_them: bool) -> list[Setting]:
    """What is tokenized: the pictures that are used, in `views` views each."""
    why = f"of each picture {views} views are tokenized, so that a prior learns it less by heart" if views > 1 else ""
    settings = [Setting("cache.views", views, why)]
    if not all_of_them:
        limit = used.train + used.held_out if used.held_out_share else used.train
        settings.append(
            Setting("data.limit", limit, f"{used.train:,} of the pictures: a prior cannot learn from more in time")
        )
    return settings


def size_reason(pictures: Pictures, shape: Shape) -> str:
    """What becomes of the pictures' own sizes."""
    ratio = shape.width / shape.height
    cropped = [
        f"{amount:.0%} of a picture's {side}"
        for amount, side in ((1 - ratio / pictures.highest, "width"), (1 - pictures.lowest / ratio, "height"))
        if amount > 0.1
    ]
    lost = f"; of the longest ones, up to {' or '.join(cropped)} is cropped away" if cropped else ""
    return f"{shape}{lost}"
