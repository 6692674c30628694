"""What runs an export in its own engine, in a process of its own and without Karipap:

    python -I ask.py ENGINE FOLDER ASKED.json ANSWER.json

ENGINE is a file beside it with a class Engine(folder, asked) with `name` (name and versions), `logprobs(window)` and
`write(prompt, new_tokens)` (tokens, seconds for the prompt and the first of them, seconds for each of the others).

ASKED.json: {"windows": [[token ids]], all of one length; "prompt": [token ids], "new_tokens": how many to write
greedily behind it, "repeats": how often to time that; "dtype": "float32" …; "threads": of the processor}.
ANSWER.json: {"engine": name and versions; "logprobs": ln p(token | those before it in its window) of every token of
every window but the first; "written": token ids behind the prompt; "prefill_seconds", "decode_seconds" (of one token):
medians of wall time, null where they were not asked for ("new_tokens" 0)}.
"""
