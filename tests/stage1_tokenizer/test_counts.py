"""Counts of codes against counting by hand."""

from collections import Counter

import torch

from stage1_tokenizer.quantisers.counts import WINDOW, CodeCounts, count_codes


def test_codes_are_counted() -> None:
    tokens = torch.tensor([[0, 3, 3], [1, 0, 3]])
    assert count_codes(tokens, 5).tolist() == [2, 1, 0, 3, 0]


def test_tokens_of_one_place_are_counted_apart() -> None:
    tokens_BHW = torch.randint(4, (3, 5, 6))  # two places in each row of six tokens
    by_hand = Counter(
        (column % 3, int(tokens_BHW[b, row, column])) for b in range(3) for row in range(5) for column in range(6)
    )
    expected = [by_hand[place, code] for place in range(3) for code in range(4)]
    assert count_codes(tokens_BHW, 4, tokens_per_place=3).tolist() == expected


def test_the_window_holds_the_last_half_to_whole_window() -> None:
    codes, batch = 8, 16
    counts = CodeCounts(codes)
    half = WINDOW * codes // 2
    seen = torch.randint(codes, (40, batch))
    for number, tokens in enumerate(seen, start=1):
        counts.add(tokens)
        whole_halves = (number * batch - 1) // half  # a half is closed by the batch that comes after it
        since = max(0, whole_halves - 1) * half // batch
        assert torch.equal(counts.window(), torch.bincount(seen[since:number].flatten(), minlength=codes))
