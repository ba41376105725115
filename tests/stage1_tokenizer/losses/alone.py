"""An adversary of the least that decodes, outside any run. As a program: what each of several processes has of it.

alone.py BATCH.pt FOLDER     as one of two ranks: learn from its part of BATCH, and write to FOLDER
"""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.training.config import TrainingConfig
from shared.training.devices.accelerator import make_accelerator
from shared.training.trainee import Trainee
from stage1_tokenizer.losses.adversarial import AdversarialConfig
from stage1_tokenizer.losses.adversarial_training import AdversarialTraining
from tests.support.narrow import part, present

PATCH = 4
ALWAYS = {"start": 0.0, "warm_up": 0.0, "ramp": 0.0}
SMALL = {"discriminator": {"kind": "patchgan", "width": 8, "layers": 1, "norm": "group"}, "lecam": 0.0}


class Decoder(nn.Module):
    """The least that decodes: vectors (B, 4) -> images (B, 3, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last_layer = nn.Linear(4, 8), nn.Linear(8, 3 * 256)

    def forward(self, z: Tensor) -> Tensor:
        return self.last_layer(F.gelu(self.first(z))).view(-1, 3, 16, 16)


def adversary(config: dict[str, Any], **training: Any) -> AdversarialTraining:
    """An adversary of a decoder, in a run of 1,000 images."""
    torch.manual_seed(0)
    options = TrainingConfig(**{"images": 1000, "precision": "fp32", "compile": False, **training})
    trainee = Trainee(Decoder(), options, make_accelerator())
    return AdversarialTraining(
        AdversarialConfig(**{**SMALL, **config}), trainee, (16, 16), part(trainee.model, "last_layer", nn.Linear), PATCH
    )


def gradients(module: nn.Module) -> list[Tensor]:
    """What every parameter of `module` has gathered."""
    return [present(parameter.grad).clone() for parameter in module.parameters()]


def learn_a_part(batch: str, folder: str) -> None:
    """Accumulate two of the four quarters of a batch, and weigh a loss."""
    one = adversary({**ALWAYS, "lecam": 0.1}, accumulation=2)
    rank = one.trainee.accelerator.process_index
    x_BCHW, x_hat_BCHW = torch.load(batch)
    one.begin_step()
    for quarter in (2 * rank, 2 * rank + 1):
        one.learn(x_BCHW.chunk(4)[quarter], x_hat_BCHW.chunk(4)[quarter])
    decoded = one.trainee.wrapped(torch.randn(2, 4) + rank)
    loss, terms = one.mislead(decoded, torch.zeros_like(decoded), decoded.square().mean())
    assert isinstance(loss, Tensor)
    one.trainee.backward(loss)
    has: dict[str, object] = {"critic": gradients(one.critic), "decoder": gradients(one.trainee.model)}
    has |= {"lecam": one.critic.lecam.state_dict(), "terms": terms}
    torch.save(has, f"{folder}/{rank}.pt")


if __name__ == "__main__":
    learn_a_part(*sys.argv[1:])
