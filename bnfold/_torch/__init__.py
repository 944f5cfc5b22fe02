"""PyTorch: reads an exported program into the neutral view, and writes a plan back."""
