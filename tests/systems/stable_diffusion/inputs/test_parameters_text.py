"""AUTOMATIC1111's text: lines of other tools read correctly, ours come back, in linear time."""

import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.linear import check_linear
from triptych.diffusion.names import SAMPLERS
from triptych.requests import TextToImage
from triptych.systems.stable_diffusion.inputs.parameters_text import (
    Infotext,
    parse_infotext,
    parse_pairs,
    write_infotext,
)
from triptych.systems.stable_diffusion.inputs.replay import infotext_of, replay
from triptych.vision.images import read_parameters, read_request, save_picture

LECTURE = (
    "Steps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 1117431804, Size: 712x1024, Model: SD XL"
)
HIRES = """masterpiece, (a castle:1.2), at night,
 two moons <lora:add_detail:0.8>
Negative prompt: blurry, lowres
  text
Steps: 30, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 42, Size: 512x768, Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, VAE hash: 735e4c3a44, VAE: vae-ft-mse.safetensors, Variation seed: 7, Variation seed strength: 0.25, Denoising strength: 0.4, Clip skip: 2, ENSD: 31337, RNG: CPU, Hires upscale: 2, Hires steps: 10, Hires upscaler: 4x-UltraSharp, Lora hashes: "add_detail: 7c6bad76eb54, other: 9a", Tiling: True, Version: v1.6.0"""  # noqa: E501
CIVITAI = """portrait of a fox
Steps: 25, Sampler: DPM++ 2M SDE, Schedule type: Exponential, CFG scale: 5, Seed: 3504587413, Size: 832x1216, Created Date: 2024-05-01T10:20:30.1234567Z, Civitai resources: [{"type":"checkpoint","modelVersionId":128713,"modelName":"A, B"}], Civitai metadata: {}"""  # noqa: E501


def test_the_lectures_line():
    info = parse_infotext(LECTURE)
    assert (info.prompt, info.negative) == ("", "")
    assert info.pairs == (
        ("Steps", "20"), ("Sampler", "Euler a"), ("CFG scale", "7.0"), ("Seed", "1117431804"),
        ("Size", "712x1024"), ("Model", "SD XL"),
    )  # fmt: skip
    found = replay(info)
    assert found.notes == ()
    assert found.request == TextToImage(
        "", model="SD XL", size="712x1024", steps=20, sampler="euler_ancestral",
        spacing="linspace", guidance=7.0, seed=1117431804, noise_source="philox",
        conventions="automatic1111",
    )  # fmt: skip
    assert write_infotext(info) == LECTURE


def test_a_line_with_everything():
    info = parse_infotext(HIRES)
    assert info.prompt == (
        "masterpiece, (a castle:1.2), at night,\ntwo moons <lora:add_detail:0.8>"
    )
    assert info.negative == "blurry, lowres\ntext"
    assert info.get("Lora hashes") == "add_detail: 7c6bad76eb54, other: 9a"
    assert info.get("Hires upscaler") == "4x-UltraSharp"
    assert info.get("nothing", "else") == "else"
    found = replay(info)
    assert found.request == TextToImage(
        "masterpiece, (a castle:1.2), at night,\ntwo moons", "blurry, lowres\ntext",
        "v1-5-pruned-emaonly",
        "512x768", 30, "dpmpp_2m", "karras", 6.5, seed=42, loras=("add_detail:0.8",),
        clip_skip=2, variation_seed=7, variation_strength=0.25, tiling=True, noise_source="cpu",
        conventions="automatic1111",
    )  # fmt: skip
    assert found.notes[:2] == (
        "VAE: vae-ft-mse.safetensors is not used: the model's own autoencoder decodes pictures",
        "the LoRA 'other' stands only in the settings, and is not used: give --loras FILE:WEIGHT",
    )
    ignored = ["Denoising strength", "ENSD", "Hires upscale", "Hires steps", "Hires upscaler"]
    assert [text.split(":")[0] for text in found.notes[2:]] == ignored
    assert parse_infotext(write_infotext(info)) == info


def test_a_line_of_civitai():
    info = parse_infotext(CIVITAI)
    assert info.get("Created Date") == "2024-05-01T10:20:30.1234567Z"
    found = replay(info)
    assert (found.request.sampler, found.request.spacing) == ("dpmpp_2m_sde", "exponential")
    assert found.request.seed == 3504587413
    assert found.request.size == "832x1216"
    assert found.notes == ("Civitai resources: made with the model A, B (version 128713)",)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Sampler: DPM++ 2M, Schedule type: Karras", ("dpmpp_2m", "karras")),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", ("dpmpp_2m", "karras")),
        ("Sampler: DPM++ 2M, Schedule type: Uniform", ("dpmpp_2m", "linspace")),
        ("Sampler: DPM++ 2M", ("dpmpp_2m", "karras")),
        ("Sampler: DPM++ 3M SDE Exponential", ("dpmpp_3m_sde", "exponential")),
        ("Sampler: Euler, Schedule type: SGM Uniform", ("euler", "sgm_uniform")),
        ("Sampler: Euler, Schedule type: SGMUniform", ("euler", "sgm_uniform")),
        ("Sampler: Euler, Schedule type: Simple", ("euler", "simple")),
        ("Sampler: Euler a, Schedule type: Normal", ("euler_ancestral", "linspace")),
        ("Sampler: Euler, Schedule type: DDIM", ("euler", "ddim_uniform")),
        ("Sampler: Euler, Schedule type: ddim_uniform", ("euler", "ddim_uniform")),
        ("Sampler: DPM++ 2M, Schedule type: KL Optimal", ("dpmpp_2m", "kl_optimal")),
        ("Sampler: DPM++ SDE, Schedule type: Turbo", ("dpmpp_sde", "turbo")),
        ("Sampler: DDIM", ("ddim", "leading")),
        ("Sampler: LCM", ("lcm", "linspace")),
        ("Steps: 1", ("", "")),
    ],
)
def test_samplers_and_schedules(line, expected):
    found = replay(parse_infotext(f"{line}, Seed: 1, Size: 64x64, CFG scale: 7"))
    assert (found.request.sampler, found.request.spacing) == expected
    uncertain = line == "Sampler: DPM++ 2M"
    assert any("before version 1.9" in text for text in found.notes) == uncertain


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Sampler: Eulr a", "no sampler 'Eulr a'. Did you mean 'euler a'"),
        ("Sampler: Euler, Schedule type: Warp", "'Warp' is not supported; supported: Automatic"),
        ("Steps: many", "Steps is 'many', which is not a number"),
        ("Size: 8x8", "each 16 to 4096 pixels"),
        ("CFG scale: nan", "guidance must be 0 to 100"),
    ],
)
def test_what_cannot_be_replayed_says_so(line, words):
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        replay(parse_infotext(f"a cat\n{line}, Seed: 1, Model: x, Version: y"))


def test_a_text_without_settings():
    assert parse_infotext("a cat\nSteps: 20, Sampler: Euler") == Infotext(
        "a cat\nSteps: 20, Sampler: Euler"
    )
    assert parse_infotext("") == Infotext()
    with pytest.raises(ValueError, match="the text has no settings"):
        replay(parse_infotext("a cat"))


def test_seeds_below_zero_draw_one():
    line = "Steps: 1, Seed: -1, Variation seed: 5, Size: 64x64"
    assert replay(parse_infotext(line)).request == TextToImage(
        "", size="64x64", steps=1, noise_source="philox", conventions="automatic1111"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Aa: 1, B: 2, C c: 3", [("Aa", "1"), ("C c", "3")]),  # keys have two characters
        ('Key: "a, b: \\"c\\"", Next: 1', [("Key", 'a, b: "c"'), ("Next", "1")]),
        ('Key: "not whole, Next: 1', [("Key", '"not whole'), ("Next", "1")]),
        ('Key: "a"b, Next: 1', [("Key", '"a"b'), ("Next", "1")]),
        ('Key: "\\x", Next: 1', [("Key", '"\\x"'), ("Next", "1")]),
        ('Key: "", Next:1', [("Key", ""), ("Next", "1")]),
        ("words, -/Key-1/x: 1,,Next: ", [("Key-1/x", "1"), ("Next", "")]),
        ("Schlüssel: ä", [("Schlüssel", "ä")]),
        ("Time: 12:30, Next: 1", [("Time", "12:30"), ("Next", "1")]),
        (":::", []),
        (": Aa: 1", [("Aa", "1")]),
        ("", []),
    ],
)
def test_pairs(line, expected):
    assert parse_pairs(line) == expected


words = st.text(st.sampled_from('ab ,:"\\\n(é[日]{}-/7'))
keys = st.from_regex(r"[A-Za-z][\w \-/]{0,8}[A-Za-z0-9]", fullmatch=True)


def as_read(text):
    """Lines without the spaces around them, the first of which is not empty."""
    lines = [line.strip() for line in text.split("\n")]
    while lines and not lines[0]:
        lines.pop(0)
    return "\n".join(lines)


@given(words, words, st.lists(st.tuples(keys, words | st.text()), min_size=3, max_size=8))
@settings(max_examples=60)
def test_what_is_written_is_read_again(prompt, negative, pairs):
    prompt, negative = as_read(prompt), as_read(negative)
    clean = [v.replace("\0", " ").encode("utf-16", "replace").decode("utf-16") for _, v in pairs]
    pairs = [(k, v) for (k, _), v in zip(pairs, clean, strict=True) if k != v]
    if len(pairs) < 3 or len(pairs) != len(clean):
        return
    info = Infotext(prompt, negative, tuple(pairs))
    text = write_infotext(info)
    back = parse_infotext(text)
    assert back.pairs == info.pairs
    # blank lines at an end of the whole text are lost, as the form has it
    assert back.negative == (negative if negative else "")
    assert back.prompt == prompt


@given(st.text(st.sampled_from('aB1 ,:"\\\n-/')))
@settings(max_examples=150)
def test_no_text_breaks_the_parser(text):
    info = parse_infotext(text)
    assert parse_infotext(write_infotext(info)).pairs == info.pairs or len(info.pairs) < 3


requests = st.builds(
    TextToImage,
    prompt=st.sampled_from(["a cat", "a (red:1.3) cat,\non a mat", "日本"]),
    negative=st.sampled_from(["", "blurry: a, b"]),
    model=st.sampled_from(["SD XL", "v1-5, pruned"]),
    size=st.just("712x1024"),
    steps=st.integers(1, 1000),
    sampler=st.sampled_from(sorted(set(SAMPLERS) - {"deis", "ddpm"})),
    spacing=st.sampled_from(["karras", "exponential", "linspace", "leading", "align_your_steps"]),
    guidance=st.floats(0, 100),
    seed=st.integers(0, 2**32),
    loras=st.sampled_from([(), ("style:0.8",), ("a:1", "b:-0.5")]),
    clip_skip=st.sampled_from([0, 2, 3]),
    noise_source=st.sampled_from(["cpu", "philox"]),
    conventions=st.sampled_from(["automatic1111", "diffusers"]),
    tiling=st.booleans(),
    variation_strength=st.sampled_from([0.0, 0.25]),
)


@given(requests)
@settings(max_examples=60)
def test_a_request_comes_back(request):
    info = infotext_of(request, seed=request.seed, size=(712, 1024), version="triptych 1")
    found = replay(parse_infotext(write_infotext(info)))
    assert found.notes == ()
    assert found.request == request


def test_the_order_and_what_is_left_out():
    request = TextToImage(
        "a cat", "blur", "/home/me/models/v1-5.safetensors", steps=20, sampler="DPM++ 2M Karras",
        guidance=7, image="x.png", strength=0.5, loras=("/home/me/style.safetensors:0.8",),
        clip_skip=1, variation_seed=3, variation_strength=0.5,
    )  # fmt: skip
    info = infotext_of(request, seed=5, size=(512, 640), version="v")
    assert write_infotext(info) == (
        "a cat <lora:style:0.8>\nNegative prompt: blur\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 5, "
        "Size: 512x640, Model: v1-5, Variation seed: 3, "
        "Variation seed strength: 0.5, Denoising strength: 0.5, RNG: CPU, Conventions: diffusers, "
        "Version: v"
    )


NASTY = ["a", "ab: ", 'ab: "', 'ab: "x\\', ":", "a,", "ab: 1, ", "- ", '"', "\n"]


@pytest.mark.parametrize("part", NASTY)
def test_reading_is_linear(part):
    check_linear(parse_pairs, part)


def test_more_than_the_limit_is_refused():
    parse_infotext("a" * 65_536)
    with pytest.raises(ValueError, match=r"1,000,000 characters of parameters; at most 65,536"):
        parse_infotext("a" * 1_000_000)


PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
TEXTS = [LECTURE, "a cät\n" + LECTURE, "猫 🦊\n" + LECTURE]


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("text", TEXTS)
def test_pictures_carry_both_records(ending, text, tmp_path):
    path = tmp_path / f"a{ending}"
    record = {"prompt": "日本 é", "seed": 3}
    save_picture(path, PICTURE, record, text)
    assert read_parameters(path) == text
    assert read_request(path) == record
    save_picture(path, PICTURE, None, text)
    assert (read_parameters(path), read_request(path)) == (text, None)
    save_picture(path, PICTURE, record)
    assert (read_parameters(path), read_request(path)) == (None, record)
    save_picture(path, PICTURE)
    assert (read_parameters(path), read_request(path)) == (None, None)


def test_the_chunks_of_a_png_are_those_that_others_read(tmp_path):
    """tEXt for Latin-1, iTXt for the rest, by Pillow itself as another program would."""
    for text, kind in ((TEXTS[1], b"tEXt"), (TEXTS[2], b"iTXt")):
        path = tmp_path / "a.png"
        save_picture(path, PICTURE, {"a": 1}, text)
        assert kind + b"parameters\0" in path.read_bytes()
        with Image.open(path) as image:
            assert image.info["parameters"] == text
            assert json.loads(image.info["triptych"]) == {"a": 1}


def test_files_of_other_programs(tmp_path):
    image, path = Image.fromarray(PICTURE), tmp_path / "a.png"
    for add in ("add_text", "add_itxt"):
        chunks = PngInfo()
        getattr(chunks, add)("parameters", LECTURE)
        image.save(path, pnginfo=chunks)
        assert read_parameters(path) == LECTURE
    image.save(path)
    data = path.read_bytes()
    chunk = b"tEXtparameters\0" + LECTURE.encode()
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(data[:-12] + chunk + data[-12:])  # behind the pixels
    assert read_parameters(path) == LECTURE
    for encoded in (
        b"UNICODE\0" + TEXTS[2].encode("utf-16-be"),
        b"UNICODE\0" + TEXTS[2].encode("utf-16-le"),
        b"UNICODE\0\xff\xfe" + TEXTS[2].encode("utf-16-le"),
        b"\0" * 8 + TEXTS[2].encode(),
    ):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = encoded
        for ending in (".jpg", ".webp"):
            image.save(path.with_suffix(ending), exif=exif)
            assert read_parameters(path.with_suffix(ending)) == TEXTS[2]
    image.save(path.with_suffix(".gif"), comment=LECTURE)
    assert read_parameters(path.with_suffix(".gif")) == LECTURE


def test_what_is_no_picture_or_does_not_fit(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png: not a PNG"):
        read_parameters(path)
    with pytest.raises(ValueError, match=r"a JPEG holds 65,527: save a \.png"):
        save_picture(tmp_path / "a.jpg", PICTURE, {"a": "b" * 20_000}, "c" * 30_000)
    assert not (tmp_path / "a.jpg").exists()
    save_picture(tmp_path / "a.webp", PICTURE, {"a": "b" * 20_000}, "c" * 30_000)
    assert read_parameters(tmp_path / "a.webp") == "c" * 30_000
