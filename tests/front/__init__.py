"""Preprocessing in front of a network, put in and taken out."""
