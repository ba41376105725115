"""Pictures of tokens, errors and codes against what they are of."""

from pathlib import Path

import matplotlib
import pytest
import torch

from shared.data.pixels import to_uint8
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
from stage1_tokenizer.tokenizer import Tokenizer
from tests.support.tiny import tokenizer_run


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizer_run(Path("unread")).model).eval()


@pytest.mark.parametrize("dim", [1, 2, 3, 8])
def test_every_code_has_a_colour_and_close_codes_close_ones(dim: int) -> None:
    codes_KD = torch.randn(40, dim)
    twins_KD = codes_KD + 1e-6
    colours_K3 = code_colours(torch.cat([codes_KD, twins_KD]))
    assert colours_K3.shape == (80, 3)
    assert -1 <= colours_K3.min() <= colours_K3.max() <= 1
    assert len(colours_K3.unique(dim=0)) == 80
    assert (colours_K3[:40] - colours_K3[40:]).abs().max() <= 3 * 2 / 79  # neighbours in rank
    assert torch.equal(colours_K3[:, dim:], torch.zeros(80, max(0, 3 - dim)))


def test_the_first_channel_orders_codes_along_their_widest_direction() -> None:
    along_K = torch.randn(50)
    codes_KD = torch.stack([0.01 * torch.randn(50), 5 * along_K, 0.01 * torch.randn(50)], dim=1)
    red_K = code_colours(codes_KD)[:, 0]
    order_K = red_K.argsort()
    assert torch.equal(order_K, along_K.argsort()) or torch.equal(order_K, along_K.argsort(descending=True))


@pytest.mark.parametrize("side", [1, 3])
def test_a_token_is_a_square_of_its_codes_colour(side: int) -> None:
    colours_K3 = torch.rand(9, 3)
    tokens_hw = torch.randint(9, (4, 5))
    picture_CHW = token_picture(tokens_hw, colours_K3, side)
    assert picture_CHW.shape == (3, 4 * side, 5 * side)
    for y in range(4 * side):
        for x in range(5 * side):
            assert torch.equal(picture_CHW[:, y, x], colours_K3[tokens_hw[y // side, x // side]])


def test_only_the_places_chosen_stay_as_they_were() -> None:
    image_CHW = torch.rand(3, 8, 12) * 2 - 1
    chosen_hw = torch.tensor([[True, False, False], [False, True, True]])
    picture_CHW = places_picture(image_CHW, chosen_hw)
    for y in range(8):
        for x in range(12):
            same = torch.equal(picture_CHW[:, y, x], image_CHW[:, y, x])
            assert same == bool(chosen_hw[y // 4, x // 4])


def test_errors_have_the_colour_of_their_size() -> None:
    levels = (0, 1, 32, ERROR_LEVELS, 200)
    right_CHW = torch.full((3, 1, len(levels)), -1.0)
    wrong_CHW = right_CHW + torch.tensor(levels) / 127.5
    shades = [matplotlib.colormaps["inferno"](min(1.0, level / ERROR_LEVELS))[:3] for level in levels]
    picture_N3 = (error_picture(wrong_CHW, right_CHW)[:, 0].T + 1) / 2
    torch.testing.assert_close(picture_N3.double(), torch.tensor(shades), atol=1e-6, rtol=0)


def test_a_code_looks_like_the_middle_of_an_image_of_it(tokenizer: Tokenizer) -> None:
    codes_N = torch.tensor([5, 0, 63])
    for code, image_CHW in zip(codes_N, decode_codes(tokenizer, codes_N), strict=True):
        whole_CHW = tokenizer.detokenize(torch.full((1, 3, 3), int(code)))[0]
        torch.testing.assert_close(image_CHW, whole_CHW[:, 8:16, 8:16])


def test_of_a_residual_quantiser_all_tokens_of_the_patch_are_that_code(drawings: Path) -> None:
    tokenizer = Tokenizer(tokenizer_run(drawings, "residual").model).eval()
    [image_CHW] = decode_codes(tokenizer, torch.tensor([7]))
    whole_CHW = tokenizer.detokenize(torch.full((1, 3, 6), 7))[0]
    torch.testing.assert_close(image_CHW, whole_CHW[:, 8:16, 8:16])


def test_unfinished_grids_are_grey_below_what_is_known(tokenizer: Tokenizer) -> None:
    tokens_Bhw = torch.randint(64, (2, 4, 4))
    whole_BCHW = tokenizer.detokenize(tokens_Bhw)
    assert torch.equal(decode_rows(tokenizer, tokens_Bhw, 4), whole_BCHW)
    one_row_BCHW = decode_rows(tokenizer, tokens_Bhw[:, :1], 4)
    assert one_row_BCHW.shape == whole_BCHW.shape
    assert torch.equal(one_row_BCHW[:, :, 8:], torch.zeros(2, 3, 24, 32))
    assert not torch.equal(one_row_BCHW[:, :, :8], torch.zeros(2, 3, 8, 32))


def test_the_cut_is_a_line_with_all_above_it_as_it_was() -> None:
    image_CHW = torch.rand(3, 128, 64) * 2 - 1
    cut_CHW = cut_picture(image_CHW, 50)
    assert torch.equal(cut_CHW[:, :48], image_CHW[:, :48])
    assert to_uint8(cut_CHW[:, 48:50]).flatten(1).unique(dim=1)[:, 0].tolist() == [213, 94, 0]
    assert cut_CHW[:, 50:].std() < image_CHW[:, 50:].std() / 3
