"""Devices: the mesh, which logical axis goes to which mesh axis, and compiled steps.

Reading order: mesh.py → rules.py → partition.py. Models never import this.
"""
