"""Folds, proves and writes, in this order: what the command and the API call."""
