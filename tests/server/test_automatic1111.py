"""AUTOMATIC1111's routes, called by `webuiapi`, a client of many programs."""

import base64
import io

import numpy as np
import pytest
import webuiapi
from PIL import Image

from tests.server.running import run_service, wait_until
from tests.server.test_jobs import hold, read_png
from triptych.server.jobs.workers import Lane
from triptych.server.routes.automatic1111 import check_settings


def connect(running, **settings) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{running.url}/sdapi/v1", steps=3, **settings)


@pytest.fixture(scope="module")
def api(served) -> webuiapi.WebUIApi:
    return connect(served)


def photo() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return Image.fromarray(pixels)


SMALL = {"width": 64, "height": 64, "seed": 7}


def test_pictures_of_a_prompt(api, served) -> None:
    """What the client draws is what our own route draws with AUTOMATIC1111's conventions."""
    result = api.txt2img(
        prompt="a red cat", negative_prompt="blur", sampler_name="DPM++ 2M", scheduler="karras",
        n_iter=2, cfg_scale=5, **SMALL,
    )  # fmt: skip
    job = served.made(
        "text-to-image", prompt="a red cat", negative="blur", sampler="dpmpp_2m", spacing="karras",
        n=2, guidance=5, steps=3, size="64x64", seed=7, conventions="automatic1111",
        noise_source="philox",
    )  # fmt: skip
    for image, own in zip(result.images, job["result"]["pictures"], strict=True):
        assert (np.asarray(image) == read_png(served, own["url"])).all()
    assert result.info["all_seeds"] == [7, 8] and result.info["sd_model_name"] == "painter"
    assert "Sampler: DPM++ 2M, Schedule type: Karras" in result.info["infotexts"][0]
    assert result.image.info["parameters"] == result.info["infotexts"][0]
    assert api.png_info(result.image).info == result.info["infotexts"][0]


def test_pictures_of_a_picture(api) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    result = api.img2img(
        images=[photo()], mask_image=mask, prompt="a cat", denoising_strength=1, **SMALL
    )
    drawn, source = np.asarray(result.image), np.asarray(photo())
    assert (drawn[:, 32:] == source[:, 32:]).all() and (drawn[:, :32] != source[:, :32]).any()
    names = ("mask_blur", "inpaint_full_res", "inpainting_fill")
    assert result.info["notes"] == [f"{name} is not followed" for name in names]
    inverted = api.img2img(
        images=[photo()], mask_image=mask, prompt="a cat", inpainting_mask_invert=1, **SMALL
    )
    assert (np.asarray(inverted.image)[:, :32] == source[:, :32]).all()


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"sampler_name": "Euler a", "eta": 1.0}, []),
        ({"sampler_name": "Euler a", "eta": 0.5}, ["eta"]),
        ({"sampler_name": "Euler", "eta": 0.5}, []),
        ({"sampler_name": "DDIM", "eta": 1.0}, ["eta"]),
        ({"sampler_index": "DDIM", "eta": 0}, []),
        ({"override_settings": {"CLIP_stop_at_last_layers": 1, "eta_ddim": 1}}, ["eta_ddim"]),
        ({"inpainting_fill": 0, "s_churn": None}, []),
        ({"inpainting_fill": 0, "mask": "x", "s_churn": 2}, ["s_churn", "inpainting_fill"]),
    ],
)
def test_settings_that_are_not_followed_are_named(body, names) -> None:
    assert check_settings(body) == [f"{name} is not followed" for name in names]


def test_lists_and_options(api) -> None:
    assert "Euler a" in api.util_get_sampler_names()
    assert {"automatic", "karras"} <= set(api.util_get_scheduler_names())
    assert api.util_get_model_names() == ["painter"] and api.get_loras() == []
    assert api.util_get_current_model() == "painter"
    api.util_set_model("painter")
    assert api.get_progress()["progress"] == 0.0
    api.util_wait_for_ready()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"enable_hr": True}, "enable_hr is not supported"),
        ({"sampler_name": "Eulr"}, "Did you mean 'euler'"),
        ({"restore_faces": True}, "restore_faces is not supported"),
        ({"alwayson_scripts": {"x": {"args": [1]}}}, "script 'x' is not supported"),
        ({"override_settings": {"sd_model_checkpoint": "sd15"}}, "no model 'sd15'"),
        ({"width": 8}, "each 16 to 4096 pixels"),
    ],
)
def test_what_cannot_be_drawn_is_refused(api, served, fields, words) -> None:
    with pytest.raises(RuntimeError):
        api.txt2img(prompt="a cat", **{**SMALL, **fields})
    answer = served.http.post("/sdapi/v1/txt2img", json={"prompt": "a", **fields})
    assert set(answer.json()) == {"error", "detail", "body", "errors"}
    assert words in answer.json()["detail"] == answer.json()["errors"]


def test_the_key_is_the_password(offered, tmp_path) -> None:
    key = "k" * 32
    with run_service(tmp_path, models=offered, api_key=key, lanes=[]) as running:
        assert connect(running, username="any", password=key).util_get_model_names() == ["painter"]
        with pytest.raises(Exception, match=r"missing or wrong|list indices|string indices"):
            connect(running, username="any", password="wrong").util_get_model_names()


def test_interrupt_stops_what_is_drawn(offered, tmp_path) -> None:
    """As there: an interrupted request is answered with the pictures that are ready."""
    import threading

    with run_service(tmp_path, models=offered, lanes=[Lane("draw", hold)]) as running:
        api, results = connect(running), []
        thread = threading.Thread(target=lambda: results.append(api.txt2img(prompt="a", **SMALL)))
        thread.start()
        wait_until(lambda: connect(running).get_progress()["progress"] == 0.5)
        state = api.get_progress()["state"]
        assert state["job_count"] == 1
        api.interrupt()
        thread.join()
        assert results[0].images == [] and results[0].info["all_seeds"] == []


def test_the_shape_of_open_webui(served) -> None:
    """Engine "automatic1111", as recorded."""
    body = {"prompt": "a cat", "batch_size": 1, "width": 64, "height": 64, "steps": 3}
    answer = served.http.post("/sdapi/v1/txt2img", json=body | {"negative_prompt": "blur"})
    with Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0]))) as image:
        assert image.size == (64, 64)
    assert served.http.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "painter"
    (model,) = served.http.get("/sdapi/v1/sd-models").json()
    assert model["title"] == model["model_name"] == "painter"
