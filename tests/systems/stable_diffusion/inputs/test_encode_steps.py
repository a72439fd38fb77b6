"""What the U-Net reads in which call; at the borders pictures are those of plain prompts."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.systems.stable_diffusion.test_pipeline import drawn, half_mask, photo, pictures
from tests.systems.stable_diffusion.tiny_stable_diffusion import UNET, config, loaded
from triptych.fields import from_json
from triptych.requests import TextToImage
from triptych.running import run
from triptych.systems.stable_diffusion.answer import to_record
from triptych.systems.stable_diffusion.inputs import encode_prompts as prompts
from triptych.systems.stable_diffusion.inputs.encode_prompts import encode_prompts
from triptych.systems.stable_diffusion.inputs.encode_steps import encode_steps
from triptych.systems.stable_diffusion.inputs.parameters_text import parse_infotext, write_infotext
from triptych.systems.stable_diffusion.inputs.replay import infotext_of, replay

SMALL = {"size": "16x16", "deterministic": True}


@pytest.fixture(scope="module")
def tiny():
    return loaded()


def read_by_calls(tiny, texts, **fields) -> list[tuple[str, ...]]:
    """The texts that each call of the U-Net reads, the negative one first."""
    known = {}
    for text in texts:
        known[text] = encode_prompts(tiny.model, tiny.tokenizers, text, "", (16, 16)).cond[
            "context"
        ]
    calls = []

    def note(module, arguments) -> None:
        rows = [context[None] for context in arguments[2]]
        calls.append(
            tuple(t for row in rows for t, one in known.items() if torch.allclose(row, one))
        )

    hook = tiny.model.unet.register_forward_pre_hook(note)
    try:
        drawn(tiny, **SMALL | fields)
    finally:
        hook.remove()
    return calls


A, B, C = "a red cat", "a blue dog", "a mat"


@pytest.mark.parametrize(
    ("sampler", "steps", "calls"),
    [
        ("euler", 4, [A, A, B, B]),
        ("euler", 5, [A, A, B, B, B]),
        ("dpmpp_2m", 4, [A, A, B, B]),
        ("heun", 4, [A, A, A, A, B, B, B]),  # the last step ends at the clean picture
        ("dpm2", 4, [A, A, A, A, B, B, B]),
        ("plms", 4, [A, A, A, B, B]),
        ("dpmpp_sde", 4, [A, A, A, A, B, B, B]),
        ("tcd", 4, [A, A, B, B]),  # moves to a noisier level are no steps
        ("restart", 20, [A] * 20 + [B] * 19),
    ],
)
def test_every_call_reads_the_text_of_its_step(tiny, sampler, steps, calls):
    spacing = "karras" if sampler == "restart" else ""
    found = read_by_calls(
        tiny, [A, B, ""], prompt=f"[{A}:{B}:0.5]", sampler=sampler, steps=steps, spacing=spacing
    )
    assert found == [("", text) for text in calls]


def test_adaptive_steps_read_by_their_share(tiny):
    found = read_by_calls(tiny, [A, B], prompt=f"[{A}:{B}:0.5]", sampler="dpm_adaptive", guidance=1)
    texts = [text for (text,) in found]
    turn = texts.index(B)
    assert 0 < turn < len(texts) and set(texts[:turn]) == {A} and set(texts[turn:]) == {B}


def test_calls_beyond_the_steps_read_the_last_text(tiny):
    found = read_by_calls(
        tiny, [A, B], prompt=f"[{A}:{B}:0.5]", sampler="dpm_adaptive", guidance=1, steps=4,
        conventions="automatic1111",
    )  # fmt: skip
    assert len(found) > 8 and found == [(A,)] * 3 + [(B,)] * (len(found) - 3)


@pytest.mark.parametrize(
    ("sampler", "prompt", "calls"),
    [
        ("euler", f"[{A}:{B}:0.5]", [A, A, A, B]),  # of 4 calls, the first counts twice
        ("euler", f"[{A}|{B}]", [A, A, B, A]),
        ("heun", f"[{A}:{B}:0.5]", [A, A, A, A, A, B, B]),  # of 8 calls
        ("heun", f"[{A}:{B}:2]", [A, A, A, B, B, B, B]),
        ("heun", f"[{A}|{B}]", [A, A, B, A, B, A, B]),
    ],
)
def test_automatic1111_counts_calls(tiny, sampler, prompt, calls):
    """As its pull request 9669 and its issue 7279 tell: calls count, and texts change one late."""
    found = read_by_calls(
        tiny, [A, B], prompt=prompt, sampler=sampler, steps=4, conventions="automatic1111",
        guidance=1,
    )  # fmt: skip
    assert found == [(text,) for text in calls]


def test_prompt_and_negative_prompt_change_and_take_turns(tiny):
    found = read_by_calls(
        tiny, [A, B, C, ""], prompt=f"[[{A}|{B}]:{C}:0.75]", negative=f"[{C}::1]", steps=4
    )
    assert found == [(C, A), ("", B), ("", A), ("", C)]


def test_image_to_image_counts_from_the_first_step_it_takes(tiny, tmp_path):
    """Of all steps, as AUTOMATIC1111: with half of them left, half of them is never over."""
    file = photo(tmp_path, 16, 16)
    fields = {"image": file, "strength": 0.5, "steps": 8, "size": ""}
    found = read_by_calls(tiny, [A, B], prompt=f"[{A}:{B}:0.25]", guidance=1, **fields)
    assert found == [(A,), (A,), (B,), (B,)]
    found = read_by_calls(tiny, [A, B], prompt=f"[{A}:{B}:0.5]", guidance=1, **fields)
    assert found == [(A,)] * 4


EQUAL = [
    (f"[{A}:{B}:0]", B),
    (f"[{A}:{B}:1.0]", A),
    (f"[{A}:{B}:3]", A),
    (f"[{A}|{A}]", A),
    (f"{A} AND {B} :0", A),
    (f"{A} :1 AND {B} :0 AND ", None),
    (f"[{A}:{B}:0] AND {C}:0", B),
    ("a [(red:1.3):blue:0.0]cat", "a bluecat"),
    ("a [x:(red:1.3):0] cat", "a (red:1.3) cat"),
]


@pytest.mark.parametrize(("prompt", "plain"), EQUAL)
def test_at_the_borders_it_is_the_plain_picture_to_the_bit(tiny, prompt, plain):
    changing = pictures(tiny, prompt=prompt, negative="a mat", **SMALL)
    if plain is None:  # an empty prompt of weight 1 has an effect
        assert not np.array_equal(changing, pictures(tiny, prompt=A, negative="a mat", **SMALL))
    else:
        assert np.array_equal(changing, pictures(tiny, prompt=plain, negative="a mat", **SMALL))


def test_a_change_in_between_is_neither_picture(tiny):
    both = pictures(tiny, prompt=f"[{A}:{B}:1]", **SMALL)
    assert not any(np.array_equal(both, pictures(tiny, prompt=text, **SMALL)) for text in (A, B))


def test_a_negative_prompt_that_ends_at_once_is_none(tiny):
    assert np.array_equal(
        pictures(tiny, negative=f"[{B}::0]", **SMALL), pictures(tiny, negative="", **SMALL)
    )


def test_equal_prompts_composed_are_one_with_the_sum_of_weights(tiny):
    """u + g (w1 + w2) (c - u) in float32, which rounds a little differently."""
    composed = drawn(tiny, prompt=f"{A} :0.5 AND {A} :0.25", guidance=4.0, **SMALL)
    alone = pictures(tiny, prompt=A, guidance=3.0, **SMALL)
    assert np.abs(composed.pictures.astype(int) - alone).max() <= 1
    assert f"the prompt is composed of {A!r} x 0.5, {A!r} x 0.25" in composed.notes
    # guidance of 1 is that of the sum; the negative prompt then has an effect
    composed = pictures(tiny, prompt=f"{A} AND {A} :2", guidance=1, negative=C, **SMALL)
    alone = pictures(tiny, prompt=A, guidance=3.0, negative=C, **SMALL)
    assert np.abs(composed.astype(int) - alone).max() <= 1


def test_only_automatic1111_reads_a_weight_behind_a_single_prompt(tiny):
    heavy = pictures(tiny, prompt=f"{A} :2", guidance=2.0, conventions="automatic1111", **SMALL)
    alone = pictures(tiny, prompt=A, guidance=4.0, conventions="automatic1111", **SMALL)
    assert np.abs(heavy.astype(int) - alone).max() <= 1
    assert not drawn(tiny, prompt=f"{A} :2", **SMALL).notes


def test_batches_rows_are_the_pictures_alone(tiny):
    prompt = f"[{A}:{B}:1] AND {C} :0.5"
    fields = {"prompt": prompt, "negative": f"[{C}|]", "size": "16x16"}
    many = pictures(tiny, n=3, **fields)
    for i in range(3):
        (alone,) = pictures(tiny, seed=3 + i, **fields)
        assert np.abs(many[i].astype(int) - alone).max() <= 1


def test_lists_of_prompts_that_change_and_do_not(tiny):
    prompts = (f"[{A}:{B}:1]", f"[{B}:{A}:1]", A, B, f"{A} AND {C}", f"{B} AND {C}")
    many = pictures(tiny, prompt=prompts, size="16x16")
    for i, prompt in enumerate(prompts):
        (alone,) = pictures(tiny, prompt=prompt, size="16x16", seed=3 + i)
        assert np.abs(many[i].astype(int) - alone).max() <= 1


def test_inpainting_and_composition(tiny, tmp_path):
    fields = {
        "image": photo(tmp_path), "mask": half_mask(tmp_path), "steps": 2, "precision": "float32",
    }  # fmt: skip
    painter = loaded(config(unet=replace(UNET, in_channels=9)))
    composed = pictures(painter, prompt=f"{A} AND {B} :0", **fields)
    assert np.array_equal(composed, pictures(painter, prompt=A, **fields))
    pictures(painter, prompt=f"[{A}:{B}:1] AND {C}", **fields)


def test_pooled_vectors_sizes_and_zeros_change_too():
    """Stable Diffusion XL's form: an empty negative prompt is zeros, in the steps where it is."""
    plain = config()
    model = loaded(
        replace(
            plain,
            text=(replace(plain.text[0], dim=12),),
            unet=replace(UNET, added=12 + 6 * 8, size_waves=8),
            sampling=replace(plain.sampling, zeros_for_empty=True),
        )
    )
    found = encode_steps(
        model.model, model.tokenizers, f"[{A}:{B} BREAK {C}:1]", f"[{C}::2]", (96, 64), 3
    )
    assert found.order == (0, 1, 2)
    for reading, (text, negative) in zip(
        found.readings, [(A, C), (f"{B} BREAK {C}", C), (f"{B} BREAK {C}", "")], strict=True
    ):
        alone = encode_prompts(model.model, model.tokenizers, text, negative, (96, 64))
        for part, expected in zip(reading, alone, strict=False):
            assert part.keys() == expected.keys() == {"context", "vector", "sizes"}
            assert all(torch.equal(part[name], expected[name]) for name in part)
    assert not found.readings[2].uncond["context"].any()


def test_each_text_is_encoded_once(tiny, monkeypatch):
    seen = []
    encode = prompts._encode

    def counted(*arguments):
        seen.append(arguments)
        return encode(*arguments)

    monkeypatch.setattr(prompts, "_encode", counted)
    found = encode_steps(
        tiny.model, tiny.tokenizers, f"[{A}|{B}] AND {A}", f"[{C}:{A}:0.5]", (16, 16), 20
    )
    assert len(seen) == 3 and len(found.readings) == 4 and len(found.order) == 20


def test_notes_of_many_texts_and_windows_are_few(tiny, monkeypatch):
    found = drawn(tiny, prompt="[" + "|".join(f"a red cat, {i} " * 4 for i in range(7)) + "]",
                  steps=7, **SMALL)  # fmt: skip
    assert len(found.notes) == 5 and found.notes[-1] == "and 3 more texts are split into windows"
    texts = [f"a red cat, {i} " * 4 for i in range(4)]
    assert len(drawn(tiny, prompt=f"[{'|'.join(texts)}]", steps=4, **SMALL).notes) == 4
    assert drawn(tiny, prompt="a [cat:dog]", **SMALL).notes[0].startswith("'[cat:dog]' is no")
    assert drawn(tiny, negative="a AND [b:c]", **SMALL).notes == (
        "negative: '[b:c]' is no schedule, such as [from:to:0.5]; it is read as text",
        "negative: AND is read as a word, as in AUTOMATIC1111",
    )
    notes = drawn(tiny, negative="a <lora:x:1>", **SMALL).notes
    assert any(note.startswith("negative: tags such as <lora:NAME:1> are read") for note in notes)
    monkeypatch.setattr(prompts, "MAX_WINDOWS", 3)
    with pytest.raises(ValueError, match="more than 3 windows of tokens: shorten the prompt"):
        drawn(tiny, prompt=f"[{A}|{B}|{C}]", negative=f"[{A}|{B} x]", **SMALL)


def test_models_without_guidance_refuse_compositions():
    plain = loaded(config(dropped=0.0))
    pictures(plain, prompt=f"[{A}:{B}:1]", guidance=1, **SMALL)
    with pytest.raises(ValueError, match="prompts have no AND"):
        pictures(plain, prompt=f"{A} AND {B}", guidance=1, **SMALL)


def test_the_record_draws_the_same_picture_again(tiny):
    first = drawn(tiny, prompt=f"[{A}|{B}:x] [{A}:{B}:1] AND {C} :0.3", **SMALL)
    record = from_json(TextToImage, json.loads(json.dumps(to_record(first.request, "tiny"))))
    assert record.prompt == first.request.prompt
    *_, again = run(record, tiny)
    assert np.array_equal(first.pictures, again.pictures)
    text = write_infotext(infotext_of(first.request, seed=3, size=(16, 16)))
    assert replay(parse_infotext(text)).request.prompt == record.prompt
