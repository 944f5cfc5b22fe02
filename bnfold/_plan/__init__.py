"""The planner: decides which affine maps move where, and says why each other one stays."""
