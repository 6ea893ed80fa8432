"""Measuring a model: perplexity, compression baselines, syntax of what it writes."""
