"""The request for an answer about a picture. No torch."""

from dataclasses import dataclass, field
from typing import Literal

from triptych.fields import set_fields
from triptych.given import ModelName, Texts, Words, take_texts
from triptych.systems.gemma.request import Decoding
from triptych.vision.given_pictures import Picture, take_picture

MAX_QUESTION = 32_000
"""Characters of a question."""
Task = Literal["answer", "caption", "detect", "ocr", "plain"]


@dataclass(frozen=True)
class Ask:
    """Ask a question about a picture, have it described, or objects located."""

    picture: Picture
    """A picture file: PNG, JPEG, WebP, GIF or BMP."""
    question: Words = ""
    """What to answer; with `--task plain` the whole prefix as the model was trained."""
    model: ModelName = ""
    """A folder of a PaliGemma, or OWNER/NAME on the hub."""
    task: Task = "answer"
    """answer: the question. caption: describe the picture. detect: boxes around `labels`. ocr: read
    the text in it. plain: the question as it is.
    """
    labels: Texts = ()
    """detect: what to look for."""
    language: Words = "en"
    """Of the answer: a code such as en, de, fr."""
    free: bool = False
    """detect: without the grammar that permits only boxes with these labels; what is malformed is
    then ignored, and shown.
    """
    location_steps: int = 1023
    """detect: by what a location is divided: 1023 as in big_vision, or 1024."""
    decoding: Decoding = field(
        default_factory=lambda: Decoding(temperature=0.0, top_k=0, top_p=1.0)
    )  # fmt: skip
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: what the device computes fastest. A Gemma computes nonsense in float16."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the first accelerator, else the CPU."""

    def __post_init__(self) -> None:
        set_fields(
            self,
            picture=take_picture("picture", self.picture),
            labels=take_texts("labels", self.labels),
        )
        if not self.model:
            raise ValueError("give a model, such as --model models/paligemma-3b-mix-224")
        if self.task in ("answer", "plain") and not self.question.strip():
            raise ValueError("give a question")
        if self.task not in ("answer", "plain") and self.question:
            raise ValueError(f"a question goes with the tasks answer and plain, not {self.task}")
        if (self.task == "detect") != bool(self.labels):
            raise ValueError("labels and the task detect go together: give both or none")
        if any(not label.strip() or ";" in label for label in self.labels):
            raise ValueError(
                "labels: no empty ones, and none with a semicolon, which separates them"
            )
        if self.location_steps not in (1023, 1024):
            raise ValueError(f"location_steps is 1023 or 1024, not {self.location_steps}")
        if not self.language.isalpha() or len(self.language) > 8:
            raise ValueError(f"language is a code such as en, not {self.language[:40]!r}")
        if len(self.question) > MAX_QUESTION:
            raise ValueError(
                f"question has {len(self.question):,} characters; at most {MAX_QUESTION:,}"
            )

    @property
    def prefix(self) -> str:
        """The question as the model was trained, without the newline that ends it."""
        return {
            "answer": f"answer {self.language} {self.question}",
            "caption": f"caption {self.language}",
            "detect": f"detect {' ; '.join(self.labels)}",
            "ocr": "ocr",
            "plain": self.question,
        }[self.task]
