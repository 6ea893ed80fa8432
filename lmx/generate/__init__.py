"""Generation: from a prompt's token ids to new ones, with a key/value cache.

Reading order: sampling.py (logits → token) → decode.py (prompt → tokens, with the
parameters that weights.py prepares) → text.py (text → text). Only `text.py` knows that
there are tokenizers.
"""
