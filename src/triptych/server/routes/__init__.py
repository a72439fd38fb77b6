"""The routes: `own.py` and `library.py` (ours), `openai.py`, `automatic1111.py`, `health.py`;
`answers.py` (the shapes of answers and errors) and `waiting.py` (a client that waits for a job).
"""
