"""Write a tokenizer as ONNX: python -m stage1_tokenizer.export [--tokenizer RUN] [--out FOLDER]

Writes encoder.onnx, which takes `image` to `tokens`, and decoder.onnx, the way back: for batches of any size, images of
the run's size, and its averaged weights. Both are run on real images before they appear in the folder: files that do
not agree with PyTorch are not written.

Shapes: B batch, H and W pixels, h and w the token grid, N = B * h * w, D dimensions of a vector, K codes, Q tokens of
one place, M vectors whose tokens differ, n random draws.
"""

import argparse
import json
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.config import parse_config
from shared.data.config import DataConfig
from shared.data.loader import validation_loader
from shared.data.open import open_datasets
from shared.disk.outputs import check_writable
from shared.errors import UserError, run_command
from shared.extras import install_hint
from shared.runs.fingerprint import fingerprint
from shared.runs.run_directory import newest_run, read_yaml
from stage1_tokenizer.quantisers.fsq import FiniteScalarQuantiser
from stage1_tokenizer.quantisers.gumbel import GumbelQuantiser
from stage1_tokenizer.quantisers.lfq import LookupFreeQuantiser
from stage1_tokenizer.quantisers.quantiser import Quantiser
from stage1_tokenizer.quantisers.residual import ResidualQuantiser
from stage1_tokenizer.quantisers.vector import VectorQuantiser
from stage1_tokenizer.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
IMAGES = 16  # that both are compared on
TOLERANCE = 1e-4  # of pixels in [-1, 1]; and, as a share of their size, of the vectors that become tokens


class EncoderGraph(nn.Module):
    """`Tokenizer.tokenize` of float32 images as one graph."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def vectors(self, image: Tensor) -> Tensor:
        """What is quantised, (B, h, w, D), of images (B, 3, H, W) in [-1, 1]."""
        return self.tokenizer.to_codes(self.tokenizer.encoder(image))

    def forward(self, image: Tensor) -> Tensor:
        """Tokens (B, h, w * Q) int64 of images (B, 3, H, W) in [-1, 1]."""
        z_BhwD = self.vectors(image)
        return tokens_of(self.tokenizer.quantiser, z_BhwD.flatten(0, -2)).reshape(*z_BhwD.shape[:2], -1)


class DecoderGraph(nn.Module):
    """`Tokenizer.detokenize` as one graph."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, tokens: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of tokens (B, h, w * Q) int64."""
        return self.tokenizer.detokenize(tokens)


def tokens_of(quantiser: Quantiser, z_ND: Tensor) -> Tensor:
    """The tokens (N,) or (N, Q) int64 that `quantiser.tokenize` gives vectors, by operators that ONNX has.

    Without the tiles that hold the (vectors x codes) matrix a part at a time: a graph cannot loop over a batch whose
    size it does not know. For an image of 1,024 tokens and 16,384 codes it takes 64 MiB.
    """
    match quantiser:
        case FiniteScalarQuantiser() | LookupFreeQuantiser():
            return quantiser._tokens(z_ND)  # each dimension by itself: no table to search
        case VectorQuantiser() if quantiser.config.unit:
            return F.linear(F.normalize(z_ND, dim=-1), quantiser.codes_KD).argmax(-1)
        case GumbelQuantiser():
            return quantiser.to_logits(z_ND).argmax(-1)
        case ResidualQuantiser():
            return residual_tokens(quantiser, z_ND)
        case _:
            return nearest_code(z_ND, quantiser.codes_KD)


def nearest_code(z_ND: Tensor, codes_KD: Tensor) -> Tensor:
    """Index (N,) of the code at the smallest Euclidean distance: where z . c - |c|^2 / 2 is largest."""
    return F.linear(z_ND, codes_KD, -0.5 * codes_KD.square().sum(1)).argmax(-1)


def residual_tokens(quantiser: ResidualQuantiser, z_ND: Tensor) -> Tensor:
    """(N, Q): the nearest code, the code nearest to what that leaves over, and so on."""
    tokens = []
    for codes_KD in quantiser.rvq.codebooks:
        tokens.append(nearest_code(z_ND, codes_KD))
        z_ND = z_ND - F.embedding(tokens[-1], codes_KD)
    return torch.stack(tokens, dim=-1)


def require_packages() -> None:
    """UserError where a package that export needs is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"export to ONNX needs what is not installed ({', '.join(missing)}): {install_hint('export')}")


def write_graph(graph: nn.Module, example: Tensor, names: tuple[str, str], facts: dict[str, Any], path: Path) -> None:
    """Write a graph of one input and one output, `names`, for any batch, with `facts` (as JSON) for its metadata.

    Raises UserError where PyTorch cannot express it in ONNX.
    """
    try:
        # Without gradients, for those written out by hand are not traced; the warnings are of PyTorch's own code.
        with torch.no_grad(), warnings.catch_warnings(action="ignore", category=FutureWarning):
            program = torch.onnx.export(
                graph.eval(), (example,), dynamo=True, opset_version=OPSET, verbose=False, input_names=names[:1],
                output_names=names[1:], dynamic_shapes=({0: torch.export.Dim("batch")},),
                custom_translation_table={torch.ops.aten.diagonal_scatter.default: diagonal_scatter},
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"{path.stem} cannot be written as ONNX by torch {torch.__version__}: {reason}") from None
    assert program is not None
    program.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
    program.save(path)


def diagonal_scatter(matrices: Any, values: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """The ONNX form of the Mamba-2 scan's `diagonal_scatter` (main diagonals, last two axes): PyTorch 2.13 has none."""
    from onnxscript import opset18

    op: Any = opset18  # its types are for scripts, and this is traced
    if (offset, dim1, dim2) != (0, -2, -1):
        raise NotImplementedError(f"diagonal_scatter with offset {offset} of axes {dim1} and {dim2}")
    size = op.Shape(matrices, start=-1)
    is_diagonal = op.Cast(op.EyeLike(op.Expand(0.0, op.Concat(size, size, axis=0))), to=9)  # 9: bool
    return op.Where(is_diagonal, op.Unsqueeze(values, [-1]), matrices)


class Agreement(NamedTuple):
    """On `images` images of so many `places` in all: at how many PyTorch and ONNX gave different tokens, all of them
    `ties` within float error; and by how much any value of a decoded image differed, at most."""

    images: int
    places: int
    ties: int
    largest_difference: float


def run_onnx(session: "InferenceSession", values: Tensor) -> Tensor:
    """The output of a graph of one input, for the first row alone and then for the others in one batch."""
    name = session.get_inputs()[0].name
    batches = [batch.numpy() for batch in (values[:1], values[1:]) if len(batch)]
    return torch.cat([torch.from_numpy(session.run(None, {name: batch})[0]) for batch in batches])


def open_session(path: Path) -> "InferenceSession":
    """The graph in onnxruntime, on the CPU, with as many threads as PyTorch has."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return InferenceSession(path, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def compare_encoder(path: Path, tokenizer: Tokenizer, images_BCHW: Tensor) -> int:
    """How many tokens differ from PyTorch's at a tie. Raises UserError where another does."""
    found_Bhw = run_onnx(open_session(path), images_BCHW)
    found_BhwQ, expected_BhwQ = (
        tokens_Bhw.unflatten(-1, (-1, tokenizer.tokens_per_place))
        for tokens_Bhw in (found_Bhw, tokenizer.tokenize(images_BCHW))
    )
    differs_Bhw = (found_BhwQ != expected_BhwQ).any(-1)
    if not differs_Bhw.any():
        return 0
    z_MD = EncoderGraph(tokenizer).vectors(images_BCHW)[differs_Bhw]
    wrong = int((~are_ties(tokenizer.quantiser, z_MD, found_BhwQ[differs_Bhw])).sum())
    if wrong:
        raise UserError(
            f"the exported encoder does not agree with PyTorch: at {wrong} of {differs_Bhw.numel()} places it gives "
            "other tokens, and not at a tie. Nothing was written"
        )
    return int(differs_Bhw.sum())


def are_ties(quantiser: Quantiser, z_MD: Tensor, tokens_MQ: Tensor, draws: int = 256) -> Tensor:
    """Which vectors (M,) have the tokens `tokens_MQ` as well, once they are moved by float error."""
    noise_nMD = torch.randn((draws, *z_MD.shape), generator=torch.Generator().manual_seed(0))
    moved_nMD = z_MD + TOLERANCE * z_MD.square().mean(-1, keepdim=True).sqrt() * noise_nMD
    return (quantiser.tokenize(moved_nMD[:, :, None]) == tokens_MQ).all(-1).any(0)


def compare_decoder(path: Path, tokenizer: Tokenizer, tokens_Bhw: Tensor) -> float:
    """The largest difference to PyTorch's images. Raises UserError where it is above the tolerance."""
    difference = (run_onnx(open_session(path), tokens_Bhw) - tokenizer.detokenize(tokens_Bhw)).abs().max().item()
    if not difference <= TOLERANCE:
        raise UserError(
            f"the exported decoder does not agree with PyTorch: values in [-1, 1] differ by up to {difference:.3g}, "
            f"and {TOLERANCE} is allowed. Nothing was written"
        )
    return difference


def real_images(run: Path, source: str | None) -> Tensor:
    """A few validation images (B, 3, H, W) of `source`, or of the run's own, at the run's size."""
    saved = read_yaml(run / "config.yaml")
    values = {**saved.get("data", {}), "augment": None} | ({"source": source} if source else {})
    config = parse_config(DataConfig, values, where=f"{run / 'config.yaml'}, data")
    return next(validation_loader(open_datasets(config, seed=0)[1], IMAGES))[0]


def facts_of(tokenizer: Tokenizer, height_width: tuple[int, int]) -> dict[str, Any]:
    """What someone who has only the file must know."""
    return {
        "image_size": height_width,
        "image_range": [-1, 1],  # 8-bit pixels are round((image + 1) * 127.5)
        "grid": tokenizer.grid(height_width),
        "codes": tokenizer.codes,
        "tokens_per_place": tokenizer.tokens_per_place,
        "backbone": tokenizer.config.backbone.kind,
        "quantiser": tokenizer.config.quantiser.kind,
        "weights": "averaged over training",
        "fingerprint": fingerprint(tokenizer),  # a prior's tokens.json names that of its tokenizer
    }


def export(run: Path, out: Path, source: str | None = None) -> Agreement:
    """Write the tokenizer of `run` into the folder `out`, compared on images of `source` (default: the run's own).

    Raises UserError, and leaves `out` as it was, where a package is missing, a part cannot be expressed in ONNX, or
    what comes out does not agree with PyTorch.
    """
    require_packages()
    check_writable(out)
    tokenizer = load_tokenizer(run).requires_grad_(False)
    if not tokenizer.quantiser.initialised:
        raise UserError(f"{run} has no codebook yet: train it further")
    images_BCHW = real_images(run, source)
    facts = facts_of(tokenizer, (images_BCHW.shape[2], images_BCHW.shape[3]))
    tokens_Bhw = tokenizer.tokenize(images_BCHW)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".unfinished-") as folder:
        encoder, decoder = Path(folder, "encoder.onnx"), Path(folder, "decoder.onnx")
        # PyTorch takes a batch of one for a size that never changes.
        write_graph(EncoderGraph(tokenizer), two_of(images_BCHW), ("image", "tokens"), facts, encoder)
        write_graph(DecoderGraph(tokenizer), two_of(tokens_Bhw), ("tokens", "image"), facts, decoder)
        ties = compare_encoder(encoder, tokenizer, images_BCHW)
        difference = compare_decoder(decoder, tokenizer, tokens_Bhw)
        for file in Path(folder).iterdir():  # with the weights beside them, where a graph is above 2 GB
            file.replace(out / file.name)
    places = tokens_Bhw.numel() // tokenizer.tokens_per_place
    return Agreement(len(images_BCHW), places, ties, difference)


def two_of(rows: Tensor) -> Tensor:
    """The first row, twice."""
    return torch.cat([rows[:1], rows[:1]])


def main() -> None:
    """Read the command line, export, say how well it agrees."""
    parser = argparse.ArgumentParser(prog="python -m stage1_tokenizer.export", description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, metavar="RUN", help="run directory (default: the last one trained)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="folder to write to (default: RUN/onnx)")
    parser.add_argument(
        "--images", metavar="SOURCE", help="images to compare on (default: the run's validation images)"
    )
    args = parser.parse_args()
    run = args.tokenizer or newest_run("tokenizer", "ema.safetensors")
    out = args.out or run / "onnx"
    found = export(run, out, args.images)
    print(
        f"wrote {out / 'encoder.onnx'} and {out / 'decoder.onnx'}. Against PyTorch on {found.images} images: "
        f"tokens differ at {found.ties} of {found.places} places (ties within float error), decoded images by at most "
        f"{found.largest_difference:.2g} in [-1, 1]"
    )


if __name__ == "__main__":
    run_command(main)
