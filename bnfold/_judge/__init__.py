"""Judges two models: runs both, measures, compares, looks again, and gives a verdict."""
