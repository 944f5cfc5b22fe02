"""The examples for engines, each on a local cluster of two workers; skipped where it is missing."""
