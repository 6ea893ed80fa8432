"""Objective, optimizer, state, the pure step, the loop around it, and survival."""
