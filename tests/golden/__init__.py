"""Golden plans: what bnfold makes of two thousand models, as hashes in ``golden.json``.

A change of the code that is meant to change no result leaves the file as it is. One line stands for
each model, so that a diff of the file says which models changed, and in what::

    python -m tests.golden                 which models changed, and how
    python -m tests.golden --text FOLDER   also write plans and results as text, to be diffed
    python -m tests.golden --write         take what is computed now as right
    python -m tests.golden --says          which laws and codes the models have, and how often
    python -m tests.golden folds stored    only models whose names begin so

``models`` names the models, ``drawing`` draws some of them, ``outcome`` hashes what is made of one,
``record`` holds the file against that.
"""
