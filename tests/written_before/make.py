"""Writes everything in files/ except the data, with the code that is imported: see README.md.

python tests/written_before/make_data.py && python tests/written_before/make.py
"""

import contextlib
import io
import json
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from triptych.cli.main import run as triptych
from triptych.train import loop

FILES = Path(__file__).parent / "files"
STOP, STEPS = 3, 5  # the runs are stopped after so many steps of so many
torch.set_num_threads(1)

LOOP = (
    "--seed 7 --log-every 2 --save-every 100 --sample-every 0 --warmup 1 "
    "--batch-size 4 --device cpu --precision float32"
)
TOWERS = "--width 4 --heads 2 --text-width 4 --text-heads 2 --length 12 --vocabulary 520"
UNET = "--head-width 4 --groups 2 --sampling-steps 4 --learning-rate 0.02"

RUNS = {
    "judge-digits": "classifier --data digits.npz --widths 4 8 --shift 1 --ema-halflife 2",
    "cvae-label": "cvae --data digits.npz --condition label --network convolutional --widths 4 8 "
    "--latent 3 --learned-prior --beta 0.5 --kl-warmup 4 --free-bits 0.1 --ema-halflife 2 "
    "--weight-decay 0.01",
    "cvae-none": "cvae --data digits.npz --condition none --network mlp --widths 8 --latent 2 "
    "--likelihood gaussian --accumulate 2",
    "cvae-quadrants": "cvae --data digits.npz --condition quadrants --quadrants 2 --network mlp "
    "--widths 8 --latent 2",
    "wgan": "wgan --data digits.npz --latent 3 --generator-widths 8 4 --critic-widths 4 8 "
    "--critic projection --generator norms --generator-hidden 6 --critic-hidden 6 "
    "--critic-steps 2 --gp-weight 5 --gp-factor normal --critic-data same --beta1 0.5 "
    "--ema-halflife 2",
    "pixel-diffusion": "pixel-diffusion --data digits.npz --widths 4 --attention 0 "
    "--head-width 4 --time-width 8 --groups 2 --patch 2 --conditioning add --drop 0.3 "
    "--dropout 0.1 --noise-schedule cosine --zero-terminal-snr --predicts velocity "
    "--min-snr 5 --learning-rate 0.02 "
    "--offset 0.1 --sampler ddim --sampling-steps 4 --guidance 1.5 --spacing leading",
    "pixel-diffusion-flow": "pixel-diffusion --data digits.npz --widths 4 --attention "
    "--head-width 4 --time-width 8 --groups 2 --shift 1.5 --ema-halflife 2 --sampling-steps 4 "
    "--learning-rate 0.02",
    "word-space": "word-space --data digits.npz --words words.npz --unseen 2 --method devise "
    "--widths 4 8 --hidden 6 --margin 0.2 --fine-tune 0.5",
    "clip": f"clip --data captioned --size 16 {TOWERS} --patch 4 --stem 4 8 --stem-group 4 "
    "--layers 1 --text-layers 1 --dim 8 --pool mean --alike 2 --patch-dropout 0.25 --crop 0.6 "
    "--colour 0.2 --cache 3 --no-duplicates",
    "clip-published": f"clip --data captioned --size 16 {TOWERS} --patch 8 --stem --layers 1 "
    "--text-layers 1 --dim 8 --pool class",
    "clip-tuned": f"clip --data captioned --size 16 {TOWERS} --patch 8 --stem --layers 1 "
    "--text-layers 1 --dim 8 --pool class --init clip-published --lora 2 --lock image "
    "--interpolate 0.5",
    "siglip": f"siglip --data captioned --size 16 {TOWERS} --patch 8 --stem --layers 1 "
    "--text-layers 1 --alike 2 --flip",
    "autoencoder": "autoencoder --data captioned --size 16 --latent-channels 4 --widths 4 4 "
    "--groups 4 --likelihood gaussian --deviation 0.5 --kl 0.01 --perceptual clip "
    "--perceptual-weight 0.5 --adversarial 0.5 --adversarial-from 2 --discriminator-widths 4 "
    "--optimizer muon --matrix-rate 0.02",
    "text-to-image-pixels": f"text-to-image --data captioned --size 16 {UNET} --text-width 4 "
    "--widths 4 --transformers 1 --text-layers 0 --text-heads 2 --text-pool mean --length 12 "
    "--vocabulary 520 --patch 2 "
    "--conditioning scale_shift --predicts sample --measured flow --offset 0.1 --drop 0.2 "
    "--shift 1.5 --first captioned --first-steps 2 --optimizer muon",
    "text-to-image-latents": f"text-to-image --data captioned --size 16 {UNET} --widths 4 "
    "--transformers 1 "
    "--autoencoder autoencoder --clip clip-published --latents likeliest --cache cache "
    "--buckets --conditioning add "
    "--noise-schedule scaled_linear --predicts noise --measured '' --min-snr 5 "
    "--sampler euler --guidance 2 --spacing leading --pictures 8",
    "text-to-image-lora": "text-to-image --data captioned --size 16 --init text-to-image-latents "
    "--lora 2 --weight-decay 0.01 --learning-rate 0.02",
}
"""Folder: how it is trained."""

PICTURES = {
    "cvae-label": "--model cvae-label --label 1 --n 2 --seed 11 --truncation 1.5",
    "cvae-none": "--model cvae-none --n 2 --seed 11",
    "cvae-quadrants": "--model cvae-quadrants --n 1 --seed 11 --image two.png",
    "wgan": "--model wgan --n 3 --seed 11",
    "pixel-diffusion": "--model pixel-diffusion --label 2 --n 2 --seed 11 --guidance 2.5 "
    "--rescale 0.3 --sampler heun --steps 3 --spacing karras",
    "pixel-diffusion-flow": "--model pixel-diffusion-flow --label 0 --n 1 --seed 11 "
    "--sampler euler_ancestral --eta 0.5 --noise-source philox --clip siglip --clip-prompt circle "
    "--clip-scale 0.5 --clip-cutouts 2 --deterministic",
    "pixels": "'a red circle' --model text-to-image-pixels --n 2 --seed 11 --negative blue "
    "--guidance 2.5 --rescale 0.3 --sampler dpmpp_2m --spacing karras --steps 3",
    "varied": "'a (green:1.2) square' --model text-to-image-pixels --seed 11 --format webp "
    "--variation-seed 5 --variation-strength 0.3 --tiling --deterministic "
    "--noise-source philox --sampler euler_ancestral --steps 3 --size 24x16",
    "latents": "'a blue circle' --model text-to-image-latents --seed 11 --format jpeg --steps 3 "
    "--clip-skip 1 --conventions automatic1111 --sampler 'DPM++ 2M Karras'",
    "lora": "'a blue square' --model text-to-image-latents --seed 11 --steps 3 "
    "--loras text-to-image-lora/lora.safetensors:0.8",
    "from-picture": "'a red square' --model text-to-image-latents --seed 11 --steps 3 "
    "--image captioned/train/red-square-1.png --strength 0.6 --mask mask.png",
}
"""Folder in pictures/: how they are drawn."""

FORMS = {
    "clip-transformers": "clip-published converted/clip-transformers --to transformers",
    "clip-open-clip": "clip-published converted/clip-open-clip --to open_clip",
}
"""In converted/: how it is written."""

EMBEDDED = (
    "clip", "clip-published", "clip-tuned", "siglip",
    "converted/clip-transformers", "converted/clip-open-clip",
)  # fmt: skip


def run(command: str) -> str:
    """What the command prints; it has to succeed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = triptych(shlex.split(command))
    if code:
        sys.exit(f"{code}: triptych {command}")
    return out.getvalue()


def rows(command: str) -> list[dict[str, object]]:
    """The lines of JSON that the command prints."""
    return [json.loads(line) for line in run(command).splitlines()]


def train(name: str, command: str) -> None:
    whole = loop.fit

    def stopped(*arguments, **settings):
        steps = whole(*arguments, **settings)
        for report in steps:
            yield report
            if report.step == STOP:
                steps.close()

    loop.fit = stopped
    preset = " --preset tiny" if command.split()[0] in ("clip", "siglip", "text-to-image") else ""
    if "--init" in command and command.startswith("text-to-image"):
        preset = " --preset fine-tune"
    averaged = "" if "--ema-halflife" in command else "--ema-halflife 0"
    run(f"train {command}{preset} --run {name} --steps {STEPS} {LOOP} {averaged}")
    loop.fit = whole


def resumed(name: str) -> list[dict[str, object]]:
    """The rows that the run's journal gets when it goes on to its end."""
    with tempfile.TemporaryDirectory(dir=FILES) as folder:
        copy = Path(folder) / name
        shutil.copytree(name, copy)
        run(f"train --resume --run {copy.relative_to(FILES)}")
        rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows if row["step"] > STOP]


def main() -> None:
    os.chdir(FILES)
    for name in (*RUNS, "pictures", "converted", "cache", "index"):
        shutil.rmtree(name, ignore_errors=True)
    for name, command in RUNS.items():
        train(name, command)
    resumed_rows = {name: resumed(name) for name in RUNS}
    commands = {
        name: command if name.startswith(("cvae", "wgan")) else f"{command} --precision float32"
        for name, command in PICTURES.items()
    }
    for name, command in commands.items():
        run(f"generate {command} --out pictures/{name}")
        (Path("pictures") / name / "grid.png").unlink(missing_ok=True)
    for command in FORMS.values():
        run(f"weights convert {command}")
    run("search captioned --text 'a red circle' --model clip --index index --json")
    expected = {
        "resumed": resumed_rows,
        "generate": commands,
        "found": rows("search captioned --text 'a red circle' --model clip --index index --json"),
        "embedded": {
            name: rows(
                f"embed --model {name} --text 'a red circle' --image "
                "captioned/train/red-circle-0.png --json"
            )
            for name in EMBEDDED
        },
    }
    for lock in FILES.glob("**/*lock"):
        lock.unlink()
    (FILES / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
