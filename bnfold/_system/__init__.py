"""What the operating system gives and bounds: memory and paths."""
