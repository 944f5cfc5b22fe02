"""Folds a module: a copy of the user's own, whose submodules change."""
