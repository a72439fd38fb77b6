"""The routes: `own.py` and `library.py` (ours), `openai.py`, `openai_chat.py`,
`openai_embeddings.py`, `automatic1111.py`, `page.py` (the studio), `health.py`; `openai_bodies.py`
(what OpenAI's clients send), `answers.py` and `errors.py` (the shapes of answers and errors),
`waiting.py` (a client that waits for its job).
"""
