"""Policies without a model of the surface, to compare with and to fall back on."""
