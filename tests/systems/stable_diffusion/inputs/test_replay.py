"""Texts as people paste them: everything in them is followed or named in a note."""

import random
from dataclasses import replace

import pytest

from triptych.diffusion.samplers.conventions import automatic1111_levels
from triptych.diffusion.schedule import Discrete, betas
from triptych.systems.stable_diffusion.inputs.parameters_text import (
    Infotext,
    parse_infotext,
    write_infotext,
)
from triptych.systems.stable_diffusion.inputs.replay import infotext_of, replay

SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x768, Model: sd"
WHOLE = f"a cat,\non a mat\nNegative prompt: blurry\n{SETTINGS}"


def pairs(text):
    return dict(parse_infotext(text).pairs)


WRAPPED = {
    "after commas": WHOLE.replace(", CFG", ",\nCFG").replace(", Model", ",\nModel"),
    "between words": WHOLE.replace("Euler a", "Euler\na").replace("CFG scale", "CFG\nscale"),
    "one on each line": WHOLE.replace(", CFG", "\nCFG").replace(", Sampler", "\nSampler")
    .replace(", Seed", "\nSeed").replace(", Size", "\nSize").replace(", Model", "\nModel"),
    "with spaces around": WHOLE.replace("\n", "  \n  "),
    "with Windows' line ends": WHOLE.replace("\n", "\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_settings_are_whole(name):
    assert parse_infotext(WRAPPED[name]) == parse_infotext(WHOLE)
    found = replay(parse_infotext(WRAPPED[name]))
    assert (found.request.seed, found.request.sampler) == (5, "euler_ancestral")


@pytest.mark.parametrize("space", [" ", ", ", "  "])
def test_everything_on_one_line(space):
    found = parse_infotext(f"a cat, on a mat{space}Negative prompt: blurry, bad{space}{SETTINGS}")
    assert found.pairs == parse_infotext(SETTINGS).pairs
    assert found.prompt.rstrip(",") == "a cat, on a mat"
    assert found.negative.rstrip(",") == "blurry, bad"
    found = parse_infotext(f"first line\na cat {SETTINGS}")
    assert (found.prompt, found.negative) == ("first line\na cat", "")


def test_settings_in_another_order_are_no_prompt():
    line = "Sampler: Euler a, Steps: 20, Seed: 5, Size: 512x512"
    assert parse_infotext(line).prompt == "" and pairs(line)["Sampler"] == "Euler a"


@pytest.mark.parametrize(
    "settings", [SETTINGS, SETTINGS.replace("Steps", "steps"), SETTINGS.replace(", CFG", ",\nCFG")]
)
def test_templates_behind_the_settings(settings):
    text = f"a cat\n{settings}\nTemplate: a {{cat|dog}}, 12:30\nand more: x, yy: z\n"
    text += "Negative Template: blurry"
    found = parse_infotext(text)
    assert found.prompt == "a cat"
    assert found.get("Template") == "a {cat|dog}, 12:30\nand more: x, yy: z"
    assert found.get("Negative Template") == "blurry" and found.get("Seed") == "5"
    assert replay(found).request.seed == 5
    assert parse_infotext(write_infotext(found)) == found
    inside = parse_infotext(f'a cat\n{SETTINGS}, Template: "a, b: c", Negative Template: "d"')
    assert (inside.get("Template"), inside.get("Model")) == ("a, b: c", "sd")


def test_a_prompt_may_have_lines_like_settings():
    info = Infotext("Steps: 3, aa: b, cc: d\nTemplate: x", "Steps: 4, aa: b, cc: d", (
        ("Steps", "20"), ("Seed", "5"), ("Model", "Model"),
    ))  # fmt: skip
    assert parse_infotext(write_infotext(info)) == info
    assert parse_infotext("a cat\nSteps: 20, Sampler: x").pairs == ()


CIVITAI = (
    'Civitai resources: [{"type":"checkpoint","modelVersionId":1,"modelName":"Big, Model"},'
    '{"type":"lora","weight":0.65,"modelVersionId":166373,"modelName":"Film: \\"Grain\\"",'
    '"modelVersionName":"v2"},{"type":"embed","modelVersionId":5,"modelName":"Bad Hands"},'
    '{"type":"lora","modelVersionId":77}], Civitai metadata: {"a":[1,2]}, Version: v1'
)


def test_resources_of_civitai_are_named():
    found = parse_infotext(f"a cat\n{SETTINGS}, {CIVITAI}")
    assert (found.get("Civitai metadata"), found.get("Version")) == ('{"a":[1,2]}', "v1")
    notes = replay(found).notes
    assert notes[0].startswith("no Schedule type") or len(notes) == 4
    assert notes[-4] == "Civitai resources: made with the model Big, Model (version 1)"
    assert notes[-3].startswith(
        'Civitai resources: lora Film: "Grain" v2 (version 166373, weight 0.65) is used only if'
    )
    assert "embed Bad Hands (version 5)" in notes[-2] and "without a name (version 77)" in notes[-1]
    assert parse_infotext(write_infotext(found)) == found


@pytest.mark.parametrize("broken", ["[{", "[1, 2]", '{"type": "lora"}', "[" * 5000, "x, y"])
def test_resources_that_cannot_be_read_are_said(broken):
    (note,) = replay(parse_infotext(f"a\n{SETTINGS}, Civitai resources: {broken}")).notes
    assert note.startswith("Civitai resources: ") and note.endswith("is ignored")


@pytest.mark.parametrize(
    ("settings", "prompt", "words"),
    [
        ("VAE: fine.pt, VAE hash: 12ab", "a", "VAE: fine.pt is not used: the model's own"),
        ("VAE hash: 12ab", "a", "VAE hash: 12ab is not used"),
        ('Lora hashes: "ink: 12ab"', "a", "the LoRA 'ink' stands only in the settings"),
        ('Hashes: {"lora:ink":"12ab","model":"1"}', "a", "the LoRA 'ink' stands only in"),
        ('TI hashes: "easyneg: 12ab"', "a EasyNeg", "used if embeddings/easyneg.safetensors"),
        ('Hashes: {"embed:easyneg":"12ab"}', "a", "'easyneg' is not in the prompts, and is not"),
        ("Refiner: xl", "a", "Refiner: xl is ignored"),
        ("Seed: 6, Seed: 7", "a", "Seed has several values: 7 is used"),
        ("ENSD: 3", "a <hypernet:x:1>", "<hypernet:x:1> is ignored"),
    ],
)
def test_files_beside_the_model_are_named(settings, prompt, words):
    notes = replay(parse_infotext(f"{prompt}\n{SETTINGS}, {settings}")).notes
    assert any(words in note for note in notes)


@pytest.mark.parametrize(
    ("written", "spacing"),
    [
        ("Simple", "simple"),
        ("Normal", "linspace"),
        ("DDIM", "ddim_uniform"),
        ("DDIM uniform", "ddim_uniform"),
        ("KL Optimal", "kl_optimal"),
        ("kl optimal", "kl_optimal"),
        ("Turbo", "turbo"),
    ],
)
def test_every_schedule_type_is_followed_and_comes_back(written, spacing):
    found = replay(parse_infotext(f"a\n{SETTINGS}, Schedule type: {written}"))
    assert (found.request.spacing, found.notes) == (spacing, ())
    levels, _ = automatic1111_levels(Discrete(tuple(betas("linear"))), "euler", 20, spacing)
    assert levels[0].ratio > levels[10].ratio > levels[-1].ratio
    text = write_infotext(infotext_of(found.request, seed=5, size=(512, 768)))
    assert replay(parse_infotext(text)).request == found.request


def test_what_is_followed_needs_no_note():
    text = f"a <lora:ink:0.5:0.7><lyco:b>\n cat\n{SETTINGS}, VAE: Automatic, CFG rescale: 0.7, "
    found = replay(parse_infotext(text + 'Lora hashes: "Ink: 12, b: 3"'))
    assert found.notes == ()
    assert found.request.loras == ("ink:0.5:0.7", "b:1")
    assert (found.request.prompt, found.request.rescale) == ("a\ncat", 0.7)
    written = write_infotext(infotext_of(found.request, seed=5, size=(512, 768)))
    assert "<lora:ink:0.5:0.7> <lora:b:1>" in written
    assert replay(parse_infotext(written)).request == found.request


PIECES = [
    *("a cat", "[a:b:0.5]", "AND", "<lora:x:0.55:1>", "<lora:y>", "<hypernet:x:1>", "(", ">", "<"),
    *("\n", " ", ",", ":", '"', "\\", "\nNegative prompt:", "Steps: 7, ", "Model: a.ckpt.pt"),
    *("Template: x", "Sampler: Euler a", "Sampler: DPM++ 2M Karras", "Seed: 5", "Seed: -1"),
    *("Size: 64x64", "Size: 1", "Clip skip: 2", "CFG scale: 7", "VAE: v", "0.5"),
    *("Schedule type: KL Optimal", "Schedule type: Turbo", "Schedule type: Normal"),
    *("Civitai resources: [{}]", 'Model: "b, c"', "Hashes: {", "Schedule type: Karras", "RNG: CPU"),
    *("Variation seed: 3", "Variation seed strength: 0.5", "Tiling: True", "Aa: b"),
    *('Lora hashes: "x: 1"', "Conventions: diffusers", "Version: 1", "\0", "\ud800", "é", "\r"),
]


def test_no_text_breaks_the_reader_and_requests_come_back():
    """Errors are ours, in words; text, request, text and request again are stable."""
    draw, came_back = random.Random(11), 0
    for _ in range(500):
        drawn = draw.choices(PIECES, k=draw.randint(1, 16))
        text = draw.choice(["", ", ", "\n"]).join(drawn) + draw.choice(["", f"\n{SETTINGS}"])
        try:
            found = replay(parse_infotext(text)).request
        except ValueError as error:
            assert str(error)
            continue
        size = found.size or "64x64"
        filled = replace(  # as sampling fills it in
            found,
            seed=3 if found.seed is None else found.seed,
            size=size,
            steps=found.steps or 20,
            sampler=found.sampler or "euler",
            spacing=found.spacing or "karras",
            guidance=5.0 if found.guidance is None else found.guidance,
            variation_seed=1 if found.variation_strength else None,
        )
        side = tuple(map(int, size.split("x")))
        info = infotext_of(filled, seed=filled.seed, size=side)
        again = replay(parse_infotext(write_infotext(info))).request
        assert again == replace(filled, model=info.get("Model")), text
        assert infotext_of(again, seed=filled.seed, size=side) == info
        came_back += 1
    assert came_back > 150
