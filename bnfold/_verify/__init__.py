"""Checks that a folded model still computes what the original computes."""
