"""PyTorch: read an exported program into the neutral view, and write a plan back into modules."""
