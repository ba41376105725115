"""A causal model beside the least that has codes, outside any run. As a program: what each of two processes has of it.

causal_alone.py BATCH.pt FOLDER     as one of two ranks: learn from its part of BATCH, and write to FOLDER
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from shared.training.config import TrainingConfig
from shared.training.devices.accelerator import make_accelerator
from shared.training.trainee import Trainee
from stage1_tokenizer.losses.causal import CausalConfig
from stage1_tokenizer.losses.causal_training import CausalTraining
from tests.support.narrow import present

GRID, DIM = (2, 3), 4
ALWAYS = {"start": 0.0, "ramp": 0.0, "width": 8, "heads": 2, "depth": 1}


def causal_training(config: dict[str, Any], **training: Any) -> CausalTraining:
    """Beside a linear encoder of vectors of 4 numbers, in a run of 1,000 images."""
    torch.manual_seed(0)
    options = TrainingConfig(**{"images": 1000, "precision": "fp32", "compile": False, **training})
    trainee = Trainee(nn.Linear(DIM, DIM), options, make_accelerator())
    return CausalTraining(CausalConfig(**{**ALWAYS, **config}), trainee, GRID, DIM)


def teach(one: CausalTraining, x_BhwD: Tensor) -> float:
    """One forward and backward pass of what the encoder makes of `x`; the error."""
    error = one.judge(one.trainee.wrapped(x_BhwD))
    one.trainee.backward(error)
    return float(error)


def gradients(one: CausalTraining) -> dict[str, list[Tensor]]:
    """What every parameter of the causal model and of the encoder has gathered."""
    both = {"model": one.model, "encoder": one.trainee.model}
    return {name: [present(p.grad).clone() for p in module.parameters()] for name, module in both.items()}


def learn_a_part(batch: str, folder: str) -> None:
    """Accumulate two of the four quarters of a batch."""
    one = causal_training({"weight": 0.5}, accumulation=2)
    rank = one.trainee.accelerator.process_index
    quarters = torch.load(batch).chunk(4)
    one.begin_step()
    for number, left in ((2 * rank, True), (2 * rank + 1, False)):
        if left:
            with one.trainee.accelerator.no_sync(one.trainee.wrapped):
                teach(one, quarters[number])
        else:
            teach(one, quarters[number])
    torch.save(gradients(one), f"{folder}/{rank}.pt")


if __name__ == "__main__":
    learn_a_part(*sys.argv[1:])
