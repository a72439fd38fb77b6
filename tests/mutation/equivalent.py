"""Mutants that compute the same as the source, or differ only in speed, each with its reason."""

EQUIVALENT: dict[str, str] = {
    "nn/convolution.py Upsample.forward #1: x[:, 0].numel() >= x.shape[1]  ->  "
    "(x[:, 0].numel() < x.shape[1])": "both ways give the same numbers; it chooses the faster one",
    "nn/packed.py _places #1: 1  ->  (2)": "torch reads it on GPUs alone",
    "nn/contrastive/tiles.py module #1: 2048  ->  (2047)": "the side of a tile: time and memory",
    "nn/contrastive/tiles.py module #1: 2  ->  (1)": "what is kept or computed twice: time, memory",
    "nn/attention.py _in_tiles #1: "
    "TILE // (rows * k.shape[1])  ->  (TILE * (rows * k.shape[1]))": "heads of a tile: memory",
    "nn/position.py resize_grid #2: 0  ->  (-1)": "of a batch of one",
    "nn/packed.py PackedLinear.forward #1: 0  ->  (-1)": "of a list of one",
    "nn/decoding.py module #1: 64  ->  (63)": "the width of a panel: speed",
    "diffusion/spacing.py _beta_quantiles #1: 1  ->  (2)": "twice as many cells: a little closer",
    "nn/contrastive/tiles.py softmax_statistics #2: 0  ->  (-1)": "one logit more is kept: memory",
    "nn/contrastive/losses.py SoftmaxLoss.forward #1: 3  ->  (4)": "groups have no gradients",
    "train/loop.py descend #1: "
    "size > update.max_norm  ->  (size >= update.max_norm)": "a norm at its limit is divided by 1",
    "train/distributed.py _fingerprint #1: "
    "tensor.detach().reshape(-1).view(torch.uint8).sum(dtype=torch.int64)  ->  "
    "(tensor.detach().reshape(-1).view(torch.uint8).sum())": "torch sums integers in int64",
    "train/distributed.py module #1: 1  ->  (0)": "each tensor is then a bucket: slower, the same",
}
