"""Mutants that compute the same as the source, or differ only in speed, each with its reason."""

EQUIVALENT: dict[str, str] = {
    "nn/convolution.py Upsample.forward #1: x[:, 0].numel() >= x.shape[1]  ->  "
    "(x[:, 0].numel() < x.shape[1])": "both ways give the same numbers; it chooses the faster one",
    "train/distributed.py _fingerprint #1: "
    "tensor.detach().reshape(-1).view(torch.uint8).sum(dtype=torch.int64)  ->  "
    "(tensor.detach().reshape(-1).view(torch.uint8).sum())": "torch sums integers in int64",
    "train/distributed.py module #1: 1  ->  (0)": "each tensor is then a bucket: slower, the same",
}
