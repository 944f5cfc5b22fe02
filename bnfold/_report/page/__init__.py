"""The page that shows a network before and after, what became of each operator, and the verdict."""
