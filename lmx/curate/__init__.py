"""Raw documents → the documents worth training on, and why the others were dropped.

    normalise       one spelling of a text, and the fingerprint of its content
    filters         judges: a text → None, or the reason to drop it
    masking         addresses, numbers and accounts of people → placeholders
    minhash         near-duplicates
    substrings      passages that occur more than once
    contamination   passages of evaluation texts
    quality         a trained judge
    words, hashing  what most of them count with

Everything is a pure function of its arguments: never of the number of workers, the
clock, hash seeds or the order of a dictionary. Not here: how training reads what was
built (`lmx.data`).
"""
