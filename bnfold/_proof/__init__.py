"""Evidence for single folds and merges, by other code than the folding; no verdict."""
