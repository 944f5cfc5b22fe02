"""Reads graphs of ONNX: their scopes, constants, shapes, and what each operator is."""
