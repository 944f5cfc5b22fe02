"""Merges linear operators of a graph of ONNX, laid down as patches."""
