"""Writes a plan into the protobuf that it was made for."""
