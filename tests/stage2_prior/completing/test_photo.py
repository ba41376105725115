"""A picture to complete: what is pasted, and what the eye is shown."""

import torch

from stage2_prior.completing.photo import Photo


def test_paste_and_mask_are_exact() -> None:
    original_CHW, shown_CHW, images_BCHW = torch.rand(3, 8, 8), torch.rand(3, 8, 8), torch.rand(2, 3, 8, 8)
    hidden_HW = torch.rand(8, 8) < 0.5
    photo = Photo("photo", original_CHW, shown_CHW, hidden_HW)
    pasted = photo.paste(images_BCHW)
    assert torch.equal(pasted[:, :, ~hidden_HW], shown_CHW[:, ~hidden_HW].expand(2, -1, -1))
    assert torch.equal(pasted[:, :, hidden_HW], images_BCHW[:, :, hidden_HW])
    assert torch.equal(photo.masked_CHW[:, ~hidden_HW], original_CHW[:, ~hidden_HW])
    assert photo.masked_CHW[:, hidden_HW].abs().max() == 0


def test_what_is_drawn_of_a_part_is_pasted_there() -> None:
    original_CHW, image_BCHW = torch.rand(3, 8, 12), torch.rand(1, 3, 8, 8)
    hidden_HW = torch.rand(8, 12) < 0.5
    photo = Photo("photo", original_CHW, original_CHW[:, :, 2:10], hidden_HW, (slice(None), slice(2, 10)))
    hidden_HW[:, :2] = hidden_HW[:, 10:] = False
    pasted_CHW = photo.paste(image_BCHW)[0]
    assert torch.equal(pasted_CHW[:, ~hidden_HW], original_CHW[:, ~hidden_HW])
    assert torch.equal(pasted_CHW[:, :, 2:10][:, hidden_HW[:, 2:10]], image_BCHW[0][:, hidden_HW[:, 2:10]])
