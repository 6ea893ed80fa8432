"""A trained model becomes one for a job: adapters wrap its parameters.

Layers know nothing of it: a kernel that is wrapped computes its own product
(`lmx/models/wrapped.py`).
"""
