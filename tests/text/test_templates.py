"""The published templates are the published ones, and names stand where `{}` stood."""

import json

import pytest

from triptych.text.templates import TEMPLATES, prompts


@pytest.mark.parametrize(
    ("name", "count", "file", "key"),
    [
        ("imagenet", 80, "openai_imagenet_templates.json", None),
        ("simple", 7, "simple_imagenet_templates.json", None),
        ("cifar", 18, "clip_benchmark_en_zeroshot_classification_templates.json", "cifar10"),
    ],
)
def test_templates_are_the_published_ones(real_data, name, count, file, key):
    published = json.loads((real_data / "classnames_prompts" / file).read_text())
    published = published[key] if key else published
    assert len(TEMPLATES[name]) == count
    assert list(TEMPLATES[name]) == [template.replace("{c}", "{}") for template in published]


def test_a_name_with_braces_is_only_a_name():
    assert prompts("{0} {}", ["a {}.", "{}, {}"]) == ["a {0} {}.", "{0} {}, {0} {}"]
    assert prompts("tench", TEMPLATES["photo"]) == ["a photo of a tench."]
    for templates in TEMPLATES.values():
        assert all("fox" in sentence for sentence in prompts("fox", templates))


@pytest.mark.parametrize(
    ("templates", "message"),
    [(["a photo"], "has no {}"), ([], "no templates"), ("a {}", "list of sentences")],
)
def test_templates_that_are_none_are_refused(templates, message):
    with pytest.raises(ValueError, match=message):
        prompts("fox", templates)
