"""ONNX: reading a model into neutral views, and writing a plan back into the same protobuf."""
