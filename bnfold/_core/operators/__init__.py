"""Records of operators: what each is, said once for every framework, and what follows from that."""
