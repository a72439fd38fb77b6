"""Pictures a second of `fit` on real pictures against the bare step, written plainly below.

Both train the same convolutional VAE (the peer's of 1.7 M parameters, ours by configuration) on MNIST in
batches of 128, reading real data; runs are interleaved and compared pair by pair. TRIPTYCH_DATA names the
folder with the data sets.
"""
