"""The routes: `own.py` and `library.py` (ours), `openai.py`, `openai_embeddings.py`,
`automatic1111.py`, `health.py`; `openai_bodies.py` (what OpenAI's clients send), `answers.py` and
`errors.py` (the shapes of answers and errors), `waiting.py` (a client that waits for its job).
"""
