"""Jobs: `store.py` (queue, events and files in SQLite), `feed.py` (wakes those who wait for
events), `carry_out.py` (one request, step by step), `workers.py` (threads that take jobs),
`training.py` and `train_process.py` (a training in a process of its own), `inputs.py` (the texts of
a request as what they name).
"""
