"""Which channels and skip connections the blocks of a U-Net get (Ho 2020): counted by hand."""

import torch
from torch import nn
from torch.nn import functional as F

from triptych.nn.levels import Features, build_down, build_up


class Block(nn.Module):
    """Notes what it is given, and gives its own number in every pixel."""

    made = 0

    def __init__(self, level, channels, out):
        super().__init__()
        Block.made += 1
        self.number = float(Block.made)
        self.level, self.channels, self.out, self.given = level, channels, out, None

    def forward(self, x, *conditioning):
        assert x.shape[1] == self.channels
        self.given, self.conditioning = x, conditioning
        return torch.full((len(x), self.out, *x.shape[2:]), self.number, dtype=torch.float64)


def sizes(levels):
    return [[(b.level, b.channels, b.out) for b in level.blocks] for level in levels]


def test_channels_of_every_block_by_hand():
    """Widths 2, 3 and 5, two blocks each: the decoder has three, and the last skip connection of a
    level has the channels of the level above.
    """
    down, up = (build((2, 3, 5), 2, Block) for build in (build_down, build_up))
    assert sizes(down) == [[(0, 2, 2), (0, 2, 2)], [(1, 2, 3), (1, 3, 3)], [(2, 3, 5), (2, 5, 5)]]
    assert sizes(up) == [
        [(2, 5 + 5, 5), (2, 5 + 5, 5), (2, 5 + 3, 5)],
        [(1, 5 + 3, 3), (1, 3 + 3, 3), (1, 3 + 2, 3)],
        [(0, 3 + 2, 2), (0, 2 + 2, 2), (0, 2 + 2, 2)],
    ]
    assert [level.downsample is not None for level in down] == [True, True, False]
    assert [level.upsample is not None for level in up] == [True, True, False]
    assert [level.downsample.conv.in_channels for level in down[:2]] == [2, 3]
    assert [level.upsample.conv.in_channels for level in up[:2]] == [5, 3]


def test_every_skip_is_used_once_the_last_first_at_odd_sizes_too():
    down, up = (build((2, 3), 1, Block).double() for build in (build_down, build_up))
    x, time = torch.randn(1, 2, 5, 7, dtype=torch.float64), torch.ones(1)
    skips = [x]
    for level in down:
        skips += level(skips[-1], time)
    assert [tuple(s.shape[1:]) for s in skips] == [(2, 5, 7), (2, 5, 7), (2, 3, 4), (3, 3, 4)]
    expected, h = list(skips), skips[-1]
    for level in up:
        h = level(h, skips, time)
    assert skips == [] and h.shape == x.shape
    blocks = [block for level in up for block in level.blocks]
    for block, skip in zip(blocks, reversed(expected), strict=True):
        assert torch.equal(block.given[:, -skip.shape[1] :], skip)
        assert block.conditioning == (time,)
    after = up[0].upsample(torch.full((1, 3, 3, 4), blocks[1].number).double(), (5, 7))
    torch.testing.assert_close(blocks[2].given[:, :3], after)


def test_features_are_two_layers_with_an_activation_between():
    layer, numbers = Features(3, 4).double(), torch.randn(2, 3)
    hidden = numbers.double() @ layer.up.weight.T + layer.up.bias
    expected = F.silu(hidden) @ layer.down.weight.T + layer.down.bias
    torch.testing.assert_close(layer(numbers), expected)
