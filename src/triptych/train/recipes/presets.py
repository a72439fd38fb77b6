"""Settings that work, the default of each recipe first. Every field can be overridden by its flag.

No torch, so that `--help` is quick.
"""

from dataclasses import replace

from triptych.train.recipes.requests import (
    Towers,
    TrainAutoencoder,
    TrainClassifier,
    TrainClip,
    TrainCvae,
    Training,
    TrainPixelDiffusion,
    TrainRequest,
    TrainSiglip,
    TrainTextToImage,
    TrainWgan,
    TrainWordSpace,
)


def _published(
    patch: int,
    width: int,
    layers: int,
    heads: int,
    text_width: int,
    text_layers: int,
    text_heads: int,
    size: int,
    *,
    dim: int,
) -> TrainClip:
    """A published size with the published recipe (arXiv:2103.00020, table 20): 32 epochs of a batch
    of 32,768 need a cluster; the rest is for anyone.
    """
    return TrainClip(
        Training(
            size=size,
            batch_size=1024,
            steps=400_000,
            schedule="cosine",
            warmup=2000,
            sample_every=0,
            evaluate_every=2000,
            precision="auto",
        ),
        Towers(
            patch=patch,
            width=width,
            layers=layers,
            heads=heads,
            text_width=text_width,
            text_layers=text_layers,
            text_heads=text_heads,
            length=77,
            vocabulary=49_408,
            crop=0.9,
            cache=128,
            learning_rate=5e-4,
            weight_decay=0.2,
        ),
        dim=dim,
    )


PRESETS: dict[str, dict[str, TrainRequest]] = {
    "cvae": {
        "digits": TrainCvae(
            Training(
                steps=3000, schedule="cosine", warmup=100, ema_halflife=100, sample_every=1000
            ),
            latent=3,
            network="mlp",
            widths=(256, 128),
            learning_rate=2e-3,
        ),
        "mnist": TrainCvae(
            Training(steps=15_000, schedule="cosine", warmup=200, ema_halflife=500, log_every=100),
            latent=3,
            network="mlp",
            widths=(500, 500),
            learning_rate=1.5e-3,
        ),
        "quadrants": TrainCvae(
            Training(steps=12_000, schedule="cosine", warmup=200, ema_halflife=500, log_every=100),
            condition="quadrants",
            latent=32,
            network="mlp",
            widths=(500, 500),
            learned_prior=True,
            learning_rate=1e-3,
            weight_decay=1e-2,
        ),
        "pictures": TrainCvae(
            Training(size=64, steps=20_000, schedule="cosine", warmup=500, ema_halflife=500),
            latent=64,
            widths=(32, 64, 128, 512),
            likelihood="gaussian",
        ),
    },
    "wgan": {
        "digits": TrainWgan(
            Training(batch_size=64, steps=3000, schedule="linear", ema_halflife=100),
            latent=16,
            generator_widths=(64, 32),
            critic_widths=(32, 64),
            learning_rate=5e-4,
            critic_learning_rate=5e-4,
        ),
        "mnist": TrainWgan(
            Training(
                batch_size=64,
                steps=17_000,
                schedule="linear",
                ema_halflife=400,
                log_every=100,
                save_every=500,
                evaluate_every=500,
            ),
            latent=10,
            generator_widths=(64, 32),
            critic_widths=(32, 64),
            critic="projection",
            generator_hidden=(256,),
            critic_hidden=(256,),
            generator="norms",
            critic_steps=1,
            learning_rate=5e-4,
            critic_learning_rate=1e-3,
        ),
        "lecture": TrainWgan(
            Training(batch_size=128, steps=2000, size=64),
            latent=32,
            generator_widths=(128, 128, 128, 64),
            critic_widths=(64, 128, 128, 128),
            gp_factor="normal",
            critic_data="same",
            learning_rate=5e-5,
            critic_learning_rate=5e-5,
            beta1=0.5,
        ),
    },
    "pixel-diffusion": {
        "digits": TrainPixelDiffusion(
            Training(
                batch_size=128,
                steps=3000,
                schedule="cosine",
                warmup=100,
                ema_halflife=100,
                sample_every=1000,
                precision="auto",
            ),
            widths=(48, 96),
            attention=(1,),
            head_width=24,
            time_width=128,
            groups=12,
        ),
        "mnist": TrainPixelDiffusion(
            Training(
                batch_size=64,
                steps=3600,
                schedule="cosine",
                warmup=200,
                ema_halflife=200,
                sample_every=500,
                save_every=250,
                precision="auto",
            ),
            widths=(48, 96),
            attention=(1,),
            head_width=24,
            time_width=192,
            patch=2,
            groups=12,
        ),
        "cifar10": TrainPixelDiffusion(
            Training(
                batch_size=128,
                steps=8000,
                schedule="cosine",
                warmup=300,
                ema_halflife=300,
                sample_every=1000,
                precision="auto",
            ),
            widths=(64, 128, 192),
            time_width=256,
            patch=2,
            dropout=0.05,
        ),
        "pictures": TrainPixelDiffusion(
            Training(
                size=64,
                batch_size=64,
                steps=30_000,
                schedule="cosine",
                warmup=500,
                ema_halflife=1000,
                sample_every=2000,
                precision="auto",
            ),
            widths=(64, 128, 192, 256),
            attention=(2, 3),
            blocks=2,
            patch=2,
            shift=1.5,
        ),
    },
    "clip": {
        "tiny": TrainClip(
            Training(
                data="scenes-one",
                size=32,
                batch_size=128,
                steps=3000,
                schedule="cosine",
                warmup=200,
                ema_halflife=100,
                evaluate_every=500,
                sample_every=0,
                precision="auto",
            ),
            Towers(patch=8, stem=(32, 64, 128), text_layers=2, alike=8),
            pool="mean",
        ),
        "ViT-B-32": _published(32, 768, 12, 12, 512, 12, 8, 224, dim=512),
        "ViT-B-16": _published(16, 768, 12, 12, 512, 12, 8, 224, dim=512),
        "ViT-L-14": _published(14, 1024, 24, 16, 768, 12, 12, 224, dim=768),
        "ViT-H-14": _published(14, 1280, 32, 16, 1024, 24, 16, 224, dim=1024),
    },
    "siglip": {
        "tiny": TrainSiglip(
            Training(
                data="scenes-one",
                size=32,
                batch_size=128,
                steps=3000,
                schedule="cosine",
                warmup=200,
                ema_halflife=100,
                evaluate_every=500,
                sample_every=0,
                precision="auto",
            ),
            Towers(patch=8, stem=(32, 64, 128), text_layers=2, alike=8),
        ),
        "ViT-B-16": TrainSiglip(
            _published(16, 768, 12, 12, 768, 12, 12, 224, dim=768).training,
            replace(_published(16, 768, 12, 12, 768, 12, 12, 224, dim=768).towers, length=64),
        ),
    },
    "autoencoder": {
        "tiny": TrainAutoencoder(
            Training(
                data="scenes",
                size=32,
                batch_size=64,
                steps=4000,
                schedule="cosine",
                warmup=100,
                ema_halflife=200,
                evaluate_every=1000,
                sample_every=1000,
                precision="auto",
            ),
        ),
        "f8": TrainAutoencoder(
            Training(
                size=256,
                batch_size=16,
                accumulate=1,
                steps=200_000,
                schedule="constant",
                warmup=1000,
                ema_halflife=2000,
                evaluate_every=5000,
                sample_every=5000,
                precision="auto",
            ),
            widths=(128, 256, 512, 512),
            blocks=2,
            groups=32,
            attention=True,
            kl=1e-6,
            adversarial=0.5,
            adversarial_from=50_000,
            discriminator_widths=(64, 128, 256),
            learning_rate=7e-5,
            discriminator_learning_rate=7e-5,
        ),
    },
    "text-to-image": {
        "tiny": TrainTextToImage(
            Training(
                data="scenes-one",
                size=32,
                batch_size=64,
                steps=10_000,
                schedule="cosine",
                warmup=200,
                ema_halflife=200,
                evaluate_every=1000,
                sample_every=1000,
                precision="auto",
            ),
        ),
        "fine-tune": TrainTextToImage(
            Training(
                data="scenes-one",
                size=512,
                batch_size=4,
                steps=2000,
                warmup=100,
                sample_every=500,
                precision="auto",
            ),
            learning_rate=1e-5,
        ),
    },
    "classifier": {
        "digits": TrainClassifier(
            Training(steps=1000, schedule="cosine", warmup=50, ema_halflife=50, log_every=100)
        ),
        "mnist": TrainClassifier(
            Training(steps=1500, schedule="cosine", warmup=100, ema_halflife=50, log_every=100),
            shift=2,
        ),
    },
    "word-space": {
        "pictures": TrainWordSpace(
            Training(
                size=32,
                steps=1500,
                schedule="cosine",
                warmup=200,
                ema_halflife=50,
                log_every=50,
            ),
            shift=2,
        ),
    },
}
"""Settings that work, the default first. Every field can be overridden by its flag."""
