"""The texts of a request as what they name: checked when a request comes in, replaced by places and
pixels when it is carried out.

What clients write are public names and ids; only these are stored, and only they are in answers.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from triptych.given import Names
from triptych.server.catalog import Offered, Text, list_texts, map_texts
from triptych.server.jobs.files import Files
from triptych.server.offers import Model, Offers
from triptych.server.sentences import name_fields
from triptych.server.settings import Limits, Places
from triptych.systems.stable_diffusion.request import parse_lora, parse_size

WEIGHTED = re.compile(r"\((.+):(\s*\d*\.?\d+)\)", re.DOTALL)
PRIVATE = re.compile(r"(?<![\w.~:/])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\:'\",;]+){2,}")
"""An absolute path in a sentence."""


class Refused(ValueError):
    """A value of a request that the service does not take: `place` is its field."""

    def __init__(self, place: str, sentence: str):
        super().__init__(sentence if sentence.startswith(place) else f"{place}: {sentence}")
        self.place = place


@dataclass
class Resolved:
    """A request as a pipeline takes it."""

    request: Any
    models: dict[str, Model] = field(default_factory=dict)
    """By the names that the request has for them."""
    private: dict[str, str] = field(default_factory=dict)
    """Public names by the paths in their place."""

    def hide(self, value: Any) -> Any:
        """JSON values or a sentence with public names instead of paths."""
        if isinstance(value, dict):
            return {self.hide(key): self.hide(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(one) for one in value]
        if isinstance(value, str):
            for path, name in self.private.items():
                value = value.replace(path, name)
        return value

    def say(self, sentence: str) -> str:
        """A sentence about the request: with public names, and with fields instead of options."""
        return name_fields(hide_paths(str(self.hide(sentence))), type(self.request))


def hide_paths(sentence: str) -> str:
    """A sentence with the last part alone of every absolute path."""
    return PRIVATE.sub(lambda match: re.split(r"[/\\]", match[0])[-1], sentence)


@dataclass(frozen=True)
class Inputs:
    """What the texts of requests may name."""

    offers: Offers
    files: Files
    places: Places
    limits: Limits

    def check(self, offered: Offered, request: Any) -> Any:
        """The request as it is stored: with an offered model where it leaves that open, and ids in
        place of data URLs.

        Raises:
            Refused: a text names what is not offered, or the request is above a limit.
        """
        self._check_limits(request)
        pictures = [text for text in list_texts(request) if text.names is Names.PICTURE]
        if len(pictures) > self.limits.pictures_per_request:
            most = self.limits.pictures_per_request
            raise Refused(pictures[0].place.split("[")[0], f"at most {most} pictures in a request")

        def take(text: Text) -> str:
            try:
                return self._take(offered, text)
            except Refused:
                raise
            except ValueError as error:
                raise Refused(text.place, str(error)) from None

        return map_texts(request, take)

    def _take(self, offered: Offered, text: Text) -> str:
        value = text.value
        if text.names is Names.MODEL and text.place == "model" and text.is_default:
            return self._default_model(offered, value)
        if not value or text.names is Names.NOTHING:
            self._check_words(text)
        elif text.names is Names.MODEL:
            self.offers.find_model(value)
        elif text.names is Names.DATA:
            self.offers.find_data(value)
        elif text.names is Names.LORA:
            self.offers.find_lora(parse_lora(value).name)
        elif text.names is Names.PICTURE:
            return self._take_picture(value)
        elif text.names is Names.LABELS:
            self._check_words(text)
            if value.endswith(".txt"):
                raise ValueError("the service reads no files of labels: send the labels")
        elif not text.is_default:
            raise ValueError("is a file on the machine of the service, which clients cannot name")
        return value

    def _default_model(self, offered: Offered, value: str) -> str:
        fitting = self.offers.fitting_models(offered.serves)
        if not fitting:
            kinds = " or ".join(offered.serves)
            raise ValueError(
                f"there is no model for this yet: train a {kinds}, or start with --models"
            )
        return value if value in {model.name for model in fitting} else fitting[0].name

    def _check_words(self, text: Text) -> None:
        if len(text.value) > self.limits.prompt_characters:
            most = f"{self.limits.prompt_characters:,}"
            raise ValueError(f"has {len(text.value):,} characters; at most {most} are read")
        if "\0" in text.value:
            raise ValueError("has a character of value 0")

    def _take_picture(self, value: str) -> str:
        """The id of a picture, with its weight; a data URL is stored."""
        weighted = WEIGHTED.fullmatch(value)
        inner = weighted[1] if weighted else value
        if inner.startswith("data:"):
            from triptych.server.pictures import decode_base64, store_upload

            data = decode_base64(inner, self.limits)
            inner = store_upload(data, self.files, self.places, self.limits).id
        else:
            self._find_picture(inner)
        return f"({inner}:{weighted[2]})" if weighted else inner

    def _find_picture(self, key: str) -> str:
        if key.startswith(("http:", "https:", "file:", "ftp:")):
            raise ValueError(
                "pictures are not fetched from other places: upload the file, or send a data URL"
            )
        try:
            return self.files.file(key).path
        except KeyError:
            raise ValueError(
                f"there is no picture {key[:40]!r}: give the id of an upload or a result, or a "
                "data URL"
            ) from None

    def _check_limits(self, request: Any) -> None:
        limits = self.limits
        counts = {
            "n": limits.n, "steps": limits.steps, "k": limits.found, "labels": limits.labels,
            "text": limits.texts, "prompt": limits.texts, "turns": limits.messages,
        }  # fmt: skip
        tokens = getattr(getattr(request, "decoding", None), "max_tokens", 0)
        if tokens > limits.tokens:
            raise Refused("decoding.max_tokens", f"at most {limits.tokens:,} here, not {tokens:,}")
        for name, most in counts.items():
            value = getattr(request, name, None)
            if isinstance(value, str) or value is None:
                continue
            if (count := len(value) if isinstance(value, tuple) else value) > most:
                raise Refused(name, f"at most {most:,} here, not {count:,}")
        sides = parse_size(request.size) if isinstance(getattr(request, "size", 0), str) else None
        if sides is None:
            return
        if max(sides) > limits.side:
            raise Refused("size", f"at most {limits.side} pixels a side here, not {max(sides)}")
        several = getattr(request, "prompt", "")
        pictures = request.n * (len(several) if isinstance(several, tuple) else 1)
        work = pictures * (request.steps or 50) * sides[0] * sides[1]
        if work > limits.work:
            share = f"{work / limits.work:.1f}"
            raise Refused(
                "size", f"n, steps and size together are {share} times what one request may be"
            )

    def resolve(self, request: Any, *, places: bool = False) -> Resolved:
        """The request with pixels in place of ids and paths in place of names of data; with
        `places` also in place of models, for another process.

        Raises:
            ValueError: a picture, a model or data are no longer there.
        """
        resolved = Resolved(request)
        change: dict[Names, Callable[[str], str]] = {
            Names.PICTURE: self._read_picture, Names.DATA: self.offers.find_data,
            Names.LORA: self._place_lora,
        }  # fmt: skip

        def put(text: Text) -> str:
            if not text.value:
                return text.value
            if text.names is Names.MODEL:
                self.require_model(text.value, text.place)
                model = self.offers.find_model(text.value)
                resolved.models[text.value] = model
                resolved.private[model.place] = model.name
                return model.place if places else text.value
            if text.names not in change:
                return text.value
            found = change[text.names](text.value)
            if text.names is not Names.PICTURE and found != text.value:
                resolved.private[found] = text.value
            return found

        resolved.request = map_texts(request, put)
        return resolved

    def require_model(self, name: str, place: str = "model") -> None:
        """Refuse a request whose model was deleted after it had been taken."""
        if name not in self.offers.models():
            gone = (
                f"model {name[:80]!r} is no longer there: it was deleted or moved; choose another"
            )
            raise Refused(place, gone)

    def _place_lora(self, value: str) -> str:
        lora = parse_lora(value)
        return str(lora._replace(name=str(self.offers.find_lora(lora.name))))

    def _read_picture(self, value: str) -> str:
        from triptych.given import rename
        from triptych.vision.images import open_picture
        from triptych.vision.pixels import keep

        weighted = WEIGHTED.fullmatch(value)
        path = self._find_picture(weighted[1] if weighted else value)
        named = keep("picture", open_picture(self.places.home / path))
        return rename(named, f"({named}:{weighted[2]})") if weighted else named
