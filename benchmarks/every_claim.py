"""Every speed claim of docs/results.md, one command after the other; `make bench`.

Hours on two cores, with nothing else running. Commands whose data or trained model is missing are
named and left out: `TRIPTYCH_DATA` is the folder of data sets.

    python benchmarks/every_claim.py [--list] [--only WORD]
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
VOCABULARY = "$TRIPTYCH_DATA/tokenizers/clip"
COMMANDS = f"""
loop.py
service.py overhead --pairs 20
service.py health --seconds 20
service.py preview
service.py load --seconds 60
train_vae.py float32
train_vae.py bfloat16
train_wgan.py float32
train_wgan.py bfloat16
train_unet.py default
train_unet.py bfloat16
train_unet.py float32
sampling.py
scenes.py
threads.py
threads.py --busy 2
passes.py overhead
passes.py index
clip_encode.py --precision default
clip_encode.py --precision float32
train_clip.py default
train_clip.py float32
photos.py embed --vocabulary {VOCABULARY}
photos.py cold --vocabulary {VOCABULARY}
preprocess.py --model clip
preprocess.py --model siglip
contrastive_losses.py 16384 2
contrastive_losses.py 32768 2
stable_diffusion.py step --precision default --pairs 20
stable_diffusion.py step --precision float32 --pairs 8
stable_diffusion.py picture --precision default --pairs 3
stable_diffusion.py decode --precision default --pairs 10
stable_diffusion.py decode --precision float32 --pairs 5
stable_diffusion.py int8 --precision default --pairs 6
stable_diffusion.py openvino --precision bfloat16 --pairs 10
stable_diffusion.py xl --precision bfloat16 --pairs 5
stable_diffusion.py start --precision default --pairs 5
stable_diffusion.py lecture --steps 20 --configurations $TRIPTYCH_DATA/configs/diffusers/stable-diffusion-xl-base-1.0 --vocabulary {VOCABULARY}
unclip.py prior --precision default --pairs 10
unclip.py decoder --precision default --pairs 10
unclip.py upsampler --precision default --pairs 10
unclip.py autoregressive --precision float32 --layers 2 --pairs 2
unclip.py prior --precision float32 --pairs 6
unclip.py decoder --precision float32 --pairs 6
unclip.py upsampler --precision float32 --pairs 6
unclip.py prior --precision bfloat16 --pairs 6
unclip.py decoder --precision bfloat16 --pairs 6
unclip.py upsampler --precision bfloat16 --pairs 6
vision_language.py train --pairs 20
detection.py --model runs/clip-words --labels colour --tune 20 --pictures 60
detection.py --model runs/clip-parts --labels pair --parts --tune 12 --pictures 30
detection.py --model runs/siglip-scenes --labels colour --tune 12 --pictures 40 --vlm runs/vlm-scratch
""".strip().splitlines()  # noqa: E501
NEED_DATA = ("train_vae.py",)


def missing(words: list[str]) -> str:
    """What a command needs and is not here; empty if it can run."""
    data = os.environ.get("TRIPTYCH_DATA", "")
    if not data and (words[0] in NEED_DATA or any("$TRIPTYCH_DATA" in word for word in words)):
        return "TRIPTYCH_DATA is not set"
    paths = [word for word in words[1:] if word.startswith(("runs/", "$TRIPTYCH_DATA"))]
    expanded = [Path(os.path.expandvars(path)) for path in paths]
    return ", ".join(f"{path} is missing" for path in expanded if not path.exists())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true", help="print the commands only")
    parser.add_argument("--only", default="", help="commands with this word")
    options = parser.parse_args()
    failed: list[str] = []
    for command in COMMANDS:
        words = shlex.split(command)
        reason = missing(words)
        if options.only not in command:
            continue
        print(f"# {command}{f'  (left out: {reason})' if reason else ''}", flush=True)
        if options.list or reason:
            continue
        arguments = [os.path.expandvars(word) for word in words[1:]]
        done = subprocess.run([sys.executable, str(HERE / words[0]), *arguments], check=False)
        if done.returncode:
            failed.append(command)
    for command in failed:
        print(f"# failed: {command}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
