"""What stands in front of a network: an input's preprocessing, added to it or taken out of it."""
