"""The planner: a neutral view of the network, the laws, and the reasons for what stays."""
