"""The losses of a tokenizer, together: what is judged of a batch."""

from pathlib import Path

import pytest
import torch

from shared.config import parse_config
from shared.training.devices.accelerator import make_accelerator
from shared.training.trainee import Trainee
from stage1_tokenizer.losses.objective import Objective
from stage1_tokenizer.losses.perceptual import StlpipsConfig, build_perceptual
from stage1_tokenizer.run_config import TokenizerRun
from stage1_tokenizer.tokenizer import Tokenizer
from tests.support.tiny import tokenizer_run


def objective_of(run: TokenizerRun) -> Objective:
    torch.manual_seed(0)
    tokenizer = Tokenizer(run.model)
    trainee = Trainee(tokenizer, run.training, make_accelerator())
    trainee.begin_step()
    tokenizer.quantiser.begin_step(0.0)
    return Objective(run.loss, tokenizer, trainee, (32, 32))


@pytest.mark.parametrize(("share", "judged"), [(1.0, 8), (0.25, 2), (0.01, 1)])
def test_a_perceptual_loss_judges_its_share_of_a_batch(share: float, judged: int) -> None:
    loss = {"perceptual": {"kind": "stlpips", "net": "alex", "weight": 0.5, "share": share}}
    run = parse_config(TokenizerRun, {**tokenizer_run(Path("unread")).model_dump(), "loss": loss}, "tiny")
    objective, pixels = objective_of(run), objective_of(tokenizer_run(Path("unread")))
    x_BCHW = (torch.rand(8, 3, 32, 32) * 2 - 1).to(objective.trainee.accelerator.device)
    distance = build_perceptual(StlpipsConfig(net="alex"), x_BCHW.device)
    with torch.no_grad(), objective.trainee.autocast():
        x_hat_BCHW = objective.trainee.model(x_BCHW).images_BCHW
        expected = distance(x_hat_BCHW, x_BCHW)[:judged].mean()
    terms = objective.learn(x_BCHW)
    torch.testing.assert_close(terms["perceptual"].detach(), expected)
    without = pixels.learn(x_BCHW)["loss"]
    torch.testing.assert_close(terms["loss"].detach(), without.detach() + 0.5 * expected)
