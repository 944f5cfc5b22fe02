"""The algebra of affine maps, their laws, and the neutral view of a network; no framework."""
