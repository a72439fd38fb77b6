"""`python -m tests.server.holding_service HOME`: a service whose one worker never ends a job."""

import sys
from pathlib import Path

from triptych.server.jobs.carry_out import Outcome, Stop, Tools
from triptych.server.jobs.store import Job
from triptych.server.jobs.workers import Lane
from triptych.server.service import open_service
from triptych.server.settings import Serve
from triptych.server.start import listen, make_server


def hold(job: Job, tools: Tools, stop: Stop) -> Outcome:
    stop.event.wait()
    return Outcome(stop.state)


def main() -> None:
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    settings = Serve(home=Path(sys.argv[1]))
    with listening, open_service(settings, with_lanes=[Lane("data", hold)]) as service:
        print(f"http://127.0.0.1:{port}", file=sys.stderr, flush=True)
        make_server(service, port).run(sockets=[listening])


if __name__ == "__main__":
    main()
