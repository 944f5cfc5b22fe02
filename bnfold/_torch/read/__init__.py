"""Reads exported programs: their constants, memory, and what each operator is."""
