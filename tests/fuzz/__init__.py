"""A fuzzer: models with something wrong in them, found by mutation of right ones.

``python -m tests.fuzz 20000 [--seed S]`` mutates models of the golden plans, in their structure
(fields, shapes, types, attributes, names, subgraphs) and in their bytes, and gives them to the
library (`library`): it plans and folds them. With ``--command`` they are files, some of them texts
and with external data, and are given to the command with options drawn (`command`).

Bytes that are drawn by what they reach in the code are a search of their own: `coverage`.

Each case is made from its number alone: ``--case N`` runs it here, with its traceback. The cases
run in processes of their own, so that a crash is a finding like any other.
"""
