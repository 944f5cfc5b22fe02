"""Folds an ExportedProgram: a copy whose operators and parameters change."""
