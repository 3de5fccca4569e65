"""Devices: the mesh and where every array lives on it."""
