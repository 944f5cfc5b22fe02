"""Proof by relation: are two files the same function, shown from their weights, without a run."""
