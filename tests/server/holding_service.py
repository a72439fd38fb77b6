"""A service whose one worker never ends a job, in a process that can be killed."""

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

from triptych.server.jobs.carry_out import Outcome, Stop, Tools
from triptych.server.jobs.store import Job
from triptych.server.jobs.workers import Lane
from triptych.server.service import open_service
from triptych.server.settings import Serve
from triptych.server.start import listen, make_server

# each process is a copy of one that has imported all of it
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def hold(job: Job, tools: Tools, stop: Stop) -> Outcome:
    stop.event.wait()
    return Outcome(stop.state)


def serve(home: Path, told: Connection) -> None:
    """Serve until the process is killed; tells the address."""
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    settings = Serve(home=home)
    with listening, open_service(settings, with_lanes=[Lane("data", hold)]) as service:
        told.send(f"http://127.0.0.1:{port}")
        make_server(service, port).run(sockets=[listening])
