"""Carries out one request: progress, previews and pictures as they come, then the result."""

import errno
import json
import threading
import time
import traceback
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from triptych import atomic, fields
from triptych.server.catalog import CheckData, offered_requests
from triptych.server.figures import Figures
from triptych.server.jobs.feed import Feed
from triptych.server.jobs.files import File, Files
from triptych.server.jobs.inputs import Inputs, Refused, Resolved, hide_paths
from triptych.server.jobs.store import Job, State, Store
from triptych.server.models import Kept, Models
from triptych.server.settings import Limits, Places

PACKAGE = str(Path(__file__).parents[2])
UNEXPECTED = "the service failed at this; its log says why"


@dataclass(frozen=True)
class Tools:
    """What a worker works with."""

    jobs: Store
    files: Files
    feed: Feed
    inputs: Inputs
    models: Models
    places: Places
    limits: Limits
    figures: Figures

    def tell(self, job: Job, kind: str, data: dict[str, Any]) -> None:
        """Append an event and wake who follows."""
        self.jobs.append(job.id, kind, data)
        self.feed.notify()


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    state: State
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


@dataclass
class Stop:
    """Set from another thread to end a job at its next step."""

    event: threading.Event = field(default_factory=threading.Event)
    state: State = "cancelled"
    """What the job then is: cancelled, or interrupted where the service stops."""


def carry_out(job: Job, tools: Tools, stop: Stop, device: str = "auto") -> Outcome:
    """Carry out a request of any system; never raises."""
    return guard(job, tools, lambda resolved: _draw(job, tools, stop, device, resolved))


def check_data(job: Job, tools: Tools, stop: Stop) -> Outcome:
    """Decode every picture of a source."""
    return guard(job, tools, lambda resolved: _check_data(job, tools, stop, resolved.request))


def guard(job: Job, tools: Tools, work: Any, *, places: bool = False) -> Outcome:
    """The outcome of `work(resolved request)`, whatever it raises."""
    resolved: Resolved | None = None
    try:
        request: Any = fields.from_json(offered_requests()[job.name].kind, job.request)
        resolved = tools.inputs.resolve(request, places=places)
        outcome: Outcome = work(resolved)
        if outcome.result is None:
            return outcome
        return Outcome(outcome.state, resolved.hide(outcome.result), outcome.error)
    except Exception as error:
        return Outcome("failed", error=describe_failure(error, resolved))


def describe_failure(error: Exception, resolved: Resolved | None = None) -> dict[str, Any]:
    """What a client is told: our own sentences, and never the words of a library or a path."""
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return {"type": "memory", "message": "there was not enough memory: ask for less at a time"}
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return {"type": "disk", "message": "the disk of the service is full: delete results"}
    known = isinstance(error, ValueError | RuntimeError | FloatingPointError)
    if not (known and _is_ours(error)):
        traceback.print_exception(error)
        return {"type": "unexpected", "message": UNEXPECTED}
    sentence = hide_paths(str(error)) if resolved is None else resolved.say(str(error))
    place = {"param": error.place} if isinstance(error, Refused) else {}
    return {"type": "request", "message": sentence} | place


def _is_ours(error: Exception) -> bool:
    """Whether a sentence was written in this package."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(PACKAGE)


def _draw(job: Job, tools: Tools, stop: Stop, device: str, resolved: Resolved) -> Outcome:
    from triptych.systems import find_pipeline

    all_threads()
    system = find_pipeline(resolved.request)
    answers = system.module("answer") if system.answer else None
    kept: list[Kept] = []

    def load(name: str, asked: Any = "cpu", dtype: str = "auto") -> Any:
        tools.tell(job, "loading", {"model": name})
        model = resolved.models[name]
        place = str(asked) if device == "auto" else device
        try:
            kept.append(tools.models.get(model.place, model.created, place, dtype))
        except Exception:
            tools.inputs.require_model(name)  # deleted since the job has begun
            raise
        choose_threads(kept[-1].loaded, getattr(resolved.request, "n", 1))
        return kept[-1].loaded

    record = Recorder(job, tools)
    work = system.module("pipeline").run(resolved.request, load)
    with closing(work):
        item = None
        for item in work:
            record.tell_progress(item, resolved)
            record.tell_preview(item, answers, kept[0] if kept else None)
            if item.done >= 1:
                continue  # the last one: its pictures are saved with the result
            record.save_pictures(item, answers, resolved)
            if stop.event.is_set():
                return Outcome(stop.state, record.result({}))
        assert item is not None
        return Outcome("done", record.finish(item, answers, resolved))


@cache
def all_threads() -> int:
    """How many threads torch uses by itself; first asked for before that is changed."""
    import torch

    return torch.get_num_threads()


def choose_threads(loaded: Any, examples: int) -> None:
    """One thread for small work and all for large, in this worker."""
    import torch

    from triptych.runtime import is_small

    torch.set_num_threads(1 if is_small(loaded.model, examples) else all_threads())


class Recorder:
    """Writes down what a job yields."""

    def __init__(self, job: Job, tools: Tools):
        self.job, self.tools = job, tools
        self.files: list[File] = []
        self.notes: tuple[str, ...] = ()
        self.taken = 0
        # the first step that somebody follows is told, and has a preview
        self.last_progress = time.monotonic() - tools.limits.preview_seconds
        self.last_preview = self.last_progress
        self.has_words = False

    def tell_progress(self, item: Any, resolved: Resolved) -> None:
        if (notes := tuple(getattr(item, "notes", ()))) != self.notes:
            self.notes = notes
            self.tools.tell(self.job, "notes", {"notes": [resolved.say(one) for one in notes]})
        if new := getattr(item, "new", ""):  # of a language model
            self._tell_words(new)
        else:
            self.tools.figures.steps.inc()
        self.taken += 1
        if not self._is_due(self.last_progress):
            return
        data = {
            "done": round(float(item.done), 4), "taken": self.taken, "pictures": len(self.files),
        }  # fmt: skip
        self.tools.tell(self.job, "progress", data)
        self.last_progress = time.monotonic()

    def _tell_words(self, new: str) -> None:
        if not self.has_words:
            self.has_words = True
            self.tools.figures.first_token_seconds.observe(time.time() - self.job.created)
        self.tools.tell(self.job, "text", {"new": new})

    def tell_preview(self, item: Any, answers: Any, kept: Kept | None) -> None:
        """A small picture of what the model expects, if there is one and the last is old enough."""
        if kept is None or not hasattr(answers, "make_preview") or item.done >= 1:
            return
        if not self.job.keeps and not self._is_due(self.last_preview):
            return
        from triptych.server.pictures import to_data_url

        exact = self.job.keeps and hasattr(answers, "decode_guess")
        name = f"{answers.__name__}, {exact}"
        if name not in kept.previews:
            make = answers.decode_guess if exact else answers.make_preview
            kept.previews[name] = make(kept.loaded)
        if (pixels := kept.previews[name](item)) is None:
            return
        url = to_data_url(pixels, self.tools.limits.preview_side)
        self.tools.tell(self.job, "preview", {"done": round(float(item.done), 4), "url": url})
        self.last_preview = time.monotonic()

    def _is_due(self, last: float) -> bool:
        """Whether the last is long enough ago for those who follow, or while nobody does."""
        limits = self.tools.limits
        followed = self.tools.feed.is_followed(self.job.id)
        pause = limits.preview_seconds if followed else limits.unseen_seconds
        return time.monotonic() - last >= pause

    def save_pictures(self, item: Any, answers: Any, resolved: Resolved) -> None:
        """Save what has been drawn since the last item, so that nothing of it is lost."""
        drawn = getattr(item, "pictures", None)
        if answers is not None and drawn is not None and len(drawn) > len(self.files):
            answer = answers.to_answer(item, _model_name(resolved))
            for picture in answer.pictures[len(self.files) :]:
                self.save(picture, resolved)

    def save(self, picture: Any, resolved: Resolved) -> None:
        from triptych.vision.images import save_picture

        parent = "results" if picture.kind == "made" else "shown"
        place = f"{parent}/{self.job.id}/{len(self.files):04d}.png"
        path = self.tools.places.home / place
        path.parent.mkdir(parents=True, exist_ok=True)
        record = resolved.hide(dict(picture.record))
        save_picture(path, picture.pixels, record or None, picture.parameters)
        height, width = picture.pixels.shape[:2]
        words = " ".join(str(fact) for fact in picture.facts.values() if isinstance(fact, str))
        file = self.tools.files.add_file(
            place, (width, height), job=self.job.id, kind=picture.kind,
            facts=resolved.hide(dict(picture.facts)), words=words,
        )  # fmt: skip
        self.files.append(file)
        self.tools.tell(self.job, "picture", describe_file(file))

    def finish(self, item: Any, answers: Any, resolved: Resolved) -> dict[str, Any]:
        """The result: all pictures, and values as JSON."""
        if answers is None:
            return self.result({})
        answer = answers.to_answer(item, _model_name(resolved))
        for picture in answer.pictures[len(self.files) :]:
            self.save(picture, resolved)
        values = dict(answer.values)
        if "notes" in values:
            values["notes"] = [resolved.say(one) for one in values["notes"]]
        for row in values.get("matches", ()):
            if found := self.tools.files.file_at(f"results/{row['name']}"):
                row["file"] = found.id
        if "prompt_tokens" in values:
            self.tools.figures.tokens.labels("read").inc(values["prompt_tokens"])
            self.tools.figures.tokens.labels("written").inc(len(values["tokens"]))
        return self.result(values)

    def result(self, values: dict[str, Any]) -> dict[str, Any]:
        result = {"values": values, "pictures": [describe_file(file) for file in self.files]}
        if self.files:  # found again beside the pictures, even without the database
            stored = {"request": self.job.request, "name": self.job.name, "result": result}
            beside = (self.tools.places.home / self.files[0].path).with_name("job.json")
            with atomic.replace_file(beside) as temporary:
                temporary.write_text(json.dumps(stored))  # not to the disk at once: a copy
        return result


def _model_name(resolved: Resolved) -> str:
    return str(getattr(resolved.request, "model", ""))


def describe_file(file: File) -> dict[str, Any]:
    """A picture as answers have it."""
    size = {"width": file.width, "height": file.height}
    url = f"/api/files/{file.id}"
    return {
        "id": file.id,
        "url": url,
        "job": file.job,
        "kind": file.kind,
        **size,
        "facts": file.facts,
    }


def _check_data(job: Job, tools: Tools, stop: Stop, request: CheckData) -> Outcome:
    from triptych.data.disk.check import check_pictures, describe_survey, survey, survey_endless
    from triptych.data.names import SCENES
    from triptych.data.sources import open_index, open_source

    if request.source in SCENES:
        return Outcome(
            "done", {"values": describe_survey(survey_endless(open_source(request.source)))}
        )
    index = open_index(request.source)
    found = {}
    total = max(len(index), 1)
    for seen in check_pictures(index):
        found[seen.row] = seen
        if len(found) % max(1, total // 100) == 0:
            tools.tell(job, "progress", {"done": round(len(found) / total, 4)})
        if stop.event.is_set():
            return Outcome(stop.state)
    return Outcome("done", {"values": describe_survey(survey(index, found))})
