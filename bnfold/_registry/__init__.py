"""A registry of models: the unit of work in a process of its own, what is done, and the index."""
