"""A picture to complete: what is pasted, and what the eye is shown."""

import torch

from stage2_prior.completing.photo import Photo


def test_paste_and_mask_are_exact() -> None:
    original_CHW, images_BCHW = torch.rand(3, 8, 8), torch.rand(2, 3, 8, 8)
    hidden_HW = torch.rand(8, 8) < 0.5
    photo = Photo("photo", original_CHW, original_CHW, hidden_HW)
    pasted = photo.paste(images_BCHW)
    assert torch.equal(pasted[:, :, ~hidden_HW], original_CHW[:, ~hidden_HW].expand(2, -1, -1))
    assert torch.equal(pasted[:, :, hidden_HW], images_BCHW[:, :, hidden_HW])
    assert torch.equal(photo.masked_CHW[:, ~hidden_HW], original_CHW[:, ~hidden_HW])
    assert photo.masked_CHW[:, hidden_HW].abs().max() == 0
