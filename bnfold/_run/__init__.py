"""Runs models: sessions, providers, bounds, inputs, and weights that a run may move."""
