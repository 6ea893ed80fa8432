"""One page per verb, and the wiring: the only package that knows all the others."""
