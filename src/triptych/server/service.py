"""Everything that the routes use, opened for one home: one service a home at a time."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from triptych.atomic import lock_folder
from triptych.fields import from_json, to_json
from triptych.server.catalog import Offered
from triptych.server.figures import Figures
from triptych.server.jobs.carry_out import Tools
from triptych.server.jobs.database import Database
from triptych.server.jobs.feed import Feed
from triptych.server.jobs.files import Files
from triptych.server.jobs.inputs import Inputs
from triptych.server.jobs.store import Job, Store
from triptych.server.jobs.workers import Lane, Workers, lanes
from triptych.server.models import Models
from triptych.server.offers import Offers
from triptych.server.settings import Limits, Places, Serve, default_home

if TYPE_CHECKING:
    from triptych.weights.loaded import Loaded


@dataclass(frozen=True)
class Service:
    """The parts of one running service."""

    settings: Serve
    places: Places
    limits: Limits
    jobs: Store
    files: Files
    feed: Feed
    offers: Offers
    inputs: Inputs
    models: Models
    workers: Workers
    figures: Figures

    def read(self, offered: Offered, body: Any) -> Any:
        """A body as the request that is stored.

        Raises:
            ValueError: it is no such request, or names what is not offered.
        """
        names = {field.name for field in dataclasses.fields(offered.kind)}
        if isinstance(body, dict) and "model" in names and not body.get("model"):
            fitting = self.offers.fitting_models(offered.serves)
            body = body | ({"model": fitting[0].name} if fitting else {})
        return self.inputs.check(offered, from_json(offered.kind, body))

    def submit(
        self,
        offered: Offered,
        request: Any,
        *,
        client: str = "",
        attached: bool = False,
        run: str = "",
        once: str | None = None,
        keeps: bool = False,
    ) -> Job:
        """Put a request in the queue; `keeps` keeps all of its previews.

        Raises:
            QueueFull: too many jobs wait.
        """
        job = self.jobs.add_job(
            offered.name, offered.lane, to_json(request), client=client, attached=attached,
            run=run, once=once, keeps=keeps, most=self.limits.waiting,
            most_of_client=self.limits.waiting_per_client,
        )  # fmt: skip
        self.feed.notify(work=True)
        return job

    def stop(self) -> None:
        """Take no more work, interrupt what runs, end all streams; returns at once."""
        self.workers.stop()
        self.feed.close()

    @property
    def ready(self) -> bool:
        """Whether new work is taken: not while the service stops."""
        return not self.workers.closing


def load_model(place: str, device: str, dtype: str) -> "Loaded":
    """Load a model; imports torch, the first time."""
    from triptych.loading import load

    return load(place, device, dtype)


@contextmanager
def open_service(
    settings: Serve, limits: Limits | None = None, with_lanes: Sequence[Lane] | None = None
) -> Iterator[Service]:
    """The service of a home, its workers running; what ran when it last stopped is interrupted.

    Raises:
        RuntimeError: another service uses this home.
        OSError: the folder cannot be written.
    """
    limits = limits or Limits()
    places = Places(settings.home or default_home())
    with lock_folder(places.home, instead="choose another --home"):
        places.make()
        database = Database(places.database)
        try:
            jobs, files = Store(database), Files(database)
            jobs.interrupt_all()
            offers = Offers(
                settings, places, lambda: {k: v["title"] for k, v in files.data_sets().items()}
            )
            offers.check()
            inputs = Inputs(offers, files, places, limits)
            feed = Feed(jobs)
            figures = Figures()
            load = figures.load_seconds.time()(load_model)
            models = Models(load, memory_budget(settings.memory))
            figures.watch(jobs, models)
            tools = Tools(jobs, files, feed, inputs, models, places, limits, figures)
            workers = Workers(tools, lanes(settings.devices) if with_lanes is None else with_lanes)
            workers.start()
            try:
                yield Service(
                    settings, places, limits, jobs, files, feed, offers, inputs, models, workers,
                    figures,
                )  # fmt: skip
            finally:
                workers.stop()
                feed.close()
                workers.join()
        finally:
            database.close()


def memory_budget(gigabytes: float) -> int:
    """Bytes that models may take: as given, or half of the machine's memory."""
    if gigabytes:
        return int(gigabytes * 1e9)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
