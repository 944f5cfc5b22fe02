"""Bugs in what people touch: `_command`, `_report`, `_pipeline`, `_api` and `_system`."""

from __future__ import annotations

from .planting import Mutant

MUTANTS = (
    Mutant(
        "a verdict does not say that weights were not compared",
        "_pipeline/exported_files.py",
        'plain = replace(plain, notes=(*plain.notes, f"{_NOT_COMPARED}{error}"))',
        "pass",
        "tests/torch/test_exported_files.py",
    ),
    Mutant(
        "a graph module folds for the sizes of an example alone",
        "_pipeline/any_kind.py",
        "shapes = varying_sizes(model, (args, kwargs)) if shapes is None else shapes",
        "shapes = shapes",
        "tests/torch/test_graph_modules.py",
    ),
    Mutant(
        "undecided is done",
        "_command/terminal.py",
        '"inconclusive": UNDECIDED,',
        '"inconclusive": PASSED,',
        "tests/cli/test_exit_codes.py",
    ),
    Mutant(
        "a failed verification writes its file",
        "_pipeline/models.py",
        'written = output if verdict.status != "fail" else None',
        "written = output",
        "tests/cli/test_exit_codes.py",
    ),
    Mutant(
        "something left to fold is nothing",
        "_command/checking.py",
        "return FAILED if left else PASSED",
        "return PASSED",
        "tests/cli/test_formats.py",
    ),
    Mutant(
        "a file of few digits passes on its outputs",
        "_pipeline/exported_files.py",
        'if plain.status == "pass" and narrow is None:',
        'if plain.status == "pass":',
        "tests/torch/test_exported_files.py",
    ),
    Mutant(
        "weights of few digits that cannot be compared prove nothing, and it passes",
        "_pipeline/modules.py",
        'status=combined(seen.status, ["inconclusive"])',
        "status=seen.status",
        "tests/torch/test_bfloat16.py",
    ),
    Mutant(
        "a module is exported that computes with numbers which weights decide",
        "_pipeline/modules.py",
        "            raise NotExportable(_FIXED)",
        "            pass",
        "tests/torch/test_judge.py",
    ),
    Mutant(
        "time holds for the comparison alone",
        "_system/time_limit.py",
        "        signal.setitimer(signal.ITIMER_REAL, seconds)\n",
        "        pass\n",
        "tests/cli/test_time_limit.py::test_several_models_have_the_time_together",
    ),
    Mutant(
        "time that is up stops files that are put in place",
        "_pipeline/models.py",
        "            time_limit.lift()\n",
        "",
        "tests/cli/test_time_limit.py::test_what_is_put_in_place_is_not_stopped",
    ),
    Mutant(
        "a second interrupt leaves a temporary folder",
        "_command/guard.py",
        "    scratch.clear(told)  # A second interrupt ends the cleaning, too.\n",
        "    if not told.endswith(_DONE):\n        scratch.clear(told)\n",
        "tests/cli/test_killed.py",
    ),
    Mutant(
        "an interrupt of the imports shows a traceback",
        "_command/guard.py",
        "            signal.signal(signal.SIGINT, signal.SIG_DFL)\n",
        "            pass\n",
        "tests/cli/test_killed.py",
    ),
    Mutant(
        "a folder that was never locked stays for ever",
        "_system/scratch.py",
        '- {f"{_LOCK}ing"}',
        "",
        "tests/cli/test_killed.py",
    ),
    Mutant(
        "a process that has ended is alive until somebody waits for it",
        "_system/scratch.py",
        'return told.rpartition(b")")[2].split()[:1] == [b"Z"]',
        "return False",
        "tests/cli/test_killed.py",
    ),
    Mutant(
        "a folder without a lock is removed with what is in it",
        "_system/scratch.py",
        'if process is None or set(os.listdir(folder)) - {f"{_LOCK}ing"}:',
        "if process is None:",
        "tests/cli/test_killed.py",
    ),
    Mutant(
        "what an interrupt crashes is called a bad file",
        "_command/guard.py",
        "    if asked or number in _ASKING:\n",
        "    if number in _ASKING:\n",
        "tests/cli/test_damaged.py",
    ),
    Mutant(
        "a model is planned twice whatever its inputs stop",
        "_pipeline/models.py",
        'if all(kept.code != "overridable-weight" for kept in plan.kept):',
        "if False:",
        "tests/test_frozen.py::test_a_model_is_planned_again_only_where_it_may_tell",
    ),
    Mutant(
        "an error that cannot be told is a failed verification",
        "_command/guard.py",
        "        os._exit(UNDECIDED)\n",
        "        raise\n",
        "tests/cli/test_damaged.py",
    ),
)
