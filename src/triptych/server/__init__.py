"""The service: every request over HTTP, as jobs that survive a closed page and a restart.

In reading order: `settings.py` (options and limits), `catalog.py` (the requests, by the names of
their routes), `schema.py` (their fields as JSON Schema), `offers.py` (which models, data and LoRAs
may be named), `pictures.py` (uploads), `jobs/` (queue, events, workers), `models.py` (loaded
models), `figures.py` (for Prometheus), `routes/`, `guard.py` (who may call), `app.py` (all of it as
one ASGI application), `start.py` (on a port).
"""
