"""Computing with a cache against computing everything at once."""

import pytest
import torch

from triptych.nn.attention import attend
from triptych.nn.cache import Cache, LayerCache, visible
from triptych.nn.transformer import Transformer


def everything(q, k, v, window):
    """Attention of all places at once, query by query."""
    rows = torch.empty_like(q)
    for t in range(q.shape[2]):
        first = 0 if window is None else max(0, t - window + 1)
        scores = q[:, :, t : t + 1] @ k[:, :, first : t + 1].transpose(-1, -2) * 4**-0.5
        rows[:, :, t : t + 1] = scores.softmax(-1) @ v[:, :, first : t + 1]
    return rows


@pytest.mark.parametrize("window", [None, 1, 3, 8, 40])
@pytest.mark.parametrize("calls", [[20], [1] * 20, [5, 1, 1, 9, 4], [2, 6, 1, 1, 10], [1, 19]])
def test_attention_in_parts_is_attention_at_once(window, calls):
    """However the places are divided, also across the end of the window."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 1, 20, 4, dtype=torch.float64) for _ in range(3))
    cache, outputs, at = Cache([window]), [], 0
    for new in calls:
        mask = cache.masks(new)[window]
        part = slice(at, at + new)
        seen = cache.layers[0].extend(k[:, :, part], v[:, :, part])
        outputs.append(attend(q[:, :, part], *seen, mask))
        at += new
        assert cache.count == at
    torch.testing.assert_close(torch.cat(outputs, 2), everything(q, k, v, window))


@pytest.mark.parametrize("window", [None, 1, 3, 8, 40])
@pytest.mark.parametrize("calls", [[20], [1] * 20, [5, 1, 1, 9, 4], [2, 6, 1, 1, 10], [1, 19]])
def test_places_are_those_of_what_is_returned(window, calls):
    layer, at = LayerCache(window), 0
    for new in calls:
        places = layer.places(new)
        keys = torch.arange(at, at + new).float()[None, None, :, None]
        kept, _ = layer.extend(keys, keys)
        assert torch.equal(kept[0, 0, :, 0].long(), places)
        at += new


@pytest.mark.parametrize("calls", [[4096, 1, 1], [10] * 400, [3] + [1] * 100])
def test_a_layer_with_a_window_keeps_only_the_window(calls):
    layer = LayerCache(16)
    for new in calls:
        layer.extend(torch.zeros(1, 1, new, 1), torch.zeros(1, 1, new, 1))
        assert layer.kept <= 16
    assert layer.count == sum(calls) > 16


def test_a_large_window_takes_memory_as_it_fills():
    layer = LayerCache(1000)
    for _ in range(3):
        layer.extend(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    assert layer.kept < 10


def test_without_layers_nothing_was_seen():
    assert Cache([]).count == 0


def test_the_buffers_grow_seldom():
    """Room for n places costs about log2(n) copies, not n."""
    layer, rooms = LayerCache(), set()
    for _ in range(1000):
        layer.extend(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
        rooms.add(layer.kept)
    assert len(rooms) <= 11 and max(rooms) < 2 * 1000


@pytest.mark.parametrize("windows", [[None, None], [3, None], [3, 3]])
def test_a_padded_batch_gives_what_each_row_gives_alone(windows):
    torch.manual_seed(0)
    net = Transformer(8, 2, 2, 16).double()
    lengths, extra = [7, 2, 5], 6
    texts = [torch.randn(n + extra, 8, dtype=torch.float64) for n in lengths]

    def states(rows, pads):
        cache, outputs = Cache(windows, pads), []
        for new in (rows.shape[1] - extra, 1, 1, 3, 1):
            at = cache.count
            masks, x = cache.masks(new), rows[:, at : at + new]
            for number, block in enumerate(net.blocks):
                x = block(x, masks[windows[number]], cache.layers[number])
            outputs.append(x)
        return torch.cat(outputs, 1)

    pads = torch.tensor([7 - n for n in lengths])
    filled = [torch.cat([torch.full((n, 8), 99.0), t]) for n, t in zip(pads, texts, strict=True)]
    together = states(torch.stack(filled).double(), pads)
    for row, text in enumerate(texts):
        alone = states(text[None], None)
        torch.testing.assert_close(together[row, pads[row] :], alone[0])


def test_positions_of_a_padded_row_start_at_its_first_token():
    cache = Cache([None], torch.tensor([2, 0]))
    assert cache.positions(4).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    cache.layers[0].extend(torch.zeros(2, 1, 4, 1), torch.zeros(2, 1, 4, 1))
    assert cache.positions(1).tolist() == [[2], [4]]


def test_who_sees_whom_is_the_definition():
    """Place by place: causal, the window, the padding, and a prefix that sees all of itself."""
    pads, prefix, window = torch.tensor([0, 2]), torch.tensor([3, 5]), 3
    mask = visible(torch.arange(8), torch.arange(8), window, pads, prefix)
    for b in range(2):
        for i in range(8):
            for j in range(8):
                before = j <= i and i - j < window
                inside = i < prefix[b] and j < prefix[b]
                seen = ((before or inside) and j >= pads[b]) or i == j
                assert bool(mask[b, 0, i, j]) == bool(seen), (b, i, j)


def test_nothing_hidden_is_no_mask():
    """So that attention can take its fastest way."""
    assert visible(torch.tensor([6]), torch.arange(7)) is None
    assert Cache([None, 4]).masks(1) == {None: None, 4: None}
    assert Cache([None], torch.tensor([0, 0])).pads is None


def test_a_transformer_takes_a_cache():
    torch.manual_seed(0)
    net = Transformer(8, 2, 2, 16).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    cache, outputs = Cache([None, None]), []
    for new in (5, 1, 3):
        mask = cache.masks(new)[None]
        outputs.append(net(x[:, cache.count : cache.count + new], mask, cache))
    causal = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(torch.cat(outputs, 1), net(x, causal))


def test_other_places_follow_after_going_back():
    torch.manual_seed(0)
    net = Transformer(8, 2, 2, 16).double()
    first, one, other = (torch.randn(2, n, 8, dtype=torch.float64) for n in (4, 3, 3))
    cache, outputs = Cache([None, None]), []
    net(first, cache.masks(4)[None], cache)
    for after in (one, other, one):
        cache.rewind(4)
        outputs.append(net(after, cache.masks(3)[None], cache))
    alone = Cache([None, None])
    expected = net(torch.cat([first, other], 1), alone.masks(7)[None], alone)[:, 4:]
    torch.testing.assert_close(outputs[1], expected)
    torch.testing.assert_close(outputs[2], outputs[0])
    with pytest.raises(ValueError, match="with a window keep no places"):
        Cache([None, 3]).rewind(1)
