import subprocess
import sys

import torch

from shared.data.vision import models, transforms


def test_transforms_and_models_work() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4)
    assert torch.equal(transforms.functional.horizontal_flip(image), image.flip(-1))
    assert models.vgg16(weights=None).features[0].out_channels == 64


def test_torchvision_imports_after_it_in_a_fresh_process() -> None:
    code = "import shared.data.vision, torchvision.ops; import torch; torch.ops.torchvision.nms"
    subprocess.run([sys.executable, "-c", code], check=True)
