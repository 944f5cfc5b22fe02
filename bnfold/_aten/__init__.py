"""Programs of PyTorch in the words of the proof: operators by their definitions in ONNX."""
