"""Bugs in the work on many models: `_registry`, `registry` and the processes that do it."""

from __future__ import annotations

from .planting import Mutant

_TESTS = "tests/cli"
_STRANGE = "tests/cli/test_strange_folders.py"

MUTANTS = (
    Mutant(
        "several at once that are not compared get threads for it",
        "_command/registry.py",
        'named.isdisjoint(("--threads", "--no-verify"))',
        'named.isdisjoint(("--threads",))',
        f"{_TESTS}/test_registry.py::test_several_at_once_that_are_not_compared",
    ),
    Mutant(
        "a wildcard leads into a file",
        "_registry/finding.py",
        "for place in filter(Path.is_dir, places):",
        "for place in places:",
        f"{_TESTS}/test_registry.py::test_patterns_lists_and_files",
    ),
    Mutant(
        "external data that changed is as it was",
        "_registry/fingerprint.py",
        "        for location in sorted(data_files(path)):\n",
        "        for location in ():\n",
        f"{_TESTS}/test_resuming.py::test_what_has_changed_is_done_anew",
    ),
    Mutant(
        "an output that was spoilt is done",
        "_registry/fingerprint.py",
        " or of_model(output) != written",
        "",
        f"{_TESTS}/test_resuming.py::test_what_has_changed_is_done_anew",
    ),
    Mutant(
        "what another version has found holds",
        "_registry/fingerprint.py",
        "        identity.versions,\n    ):",
        "        before.versions,\n    ):",
        f"{_TESTS}/test_resuming.py::test_another_version_does_it_anew",
    ),
    Mutant(
        "what ran out of memory is done",
        "_registry/fingerprint.py",
        'if told.status not in ("done", "error"):',
        'if told.status == "killed":',
        f"{_TESTS}/test_resuming.py::test_what_came_to_no_end_is_tried_again",
    ),
    Mutant(
        "a bound that was too small is for good",
        "_registry/fingerprint.py",
        "    if is_open and any(",
        "    if False and any(",
        f"{_TESTS}/test_resuming.py::test_a_bound_that_was_too_small_is_not_for_good",
    ),
    Mutant(
        "a process that was killed has written its model",
        "_command/warm.py",
        '    kind: Status = _ENDINGS.get(number, "crashed")\n',
        '    kind: Status = "done"\n',
        f"{_TESTS}/test_deaths.py::test_a_model_that_ends_its_process_ends_nothing_else",
    ),
    Mutant(
        "who asked is gone, and the work goes on",
        "_command/warm.py",
        "select.select([child_open, requests], [], [])",
        "select.select([child_open], [], [])",
        f"{_TESTS}/test_resuming.py::test_interrupted_and_resumed",
    ),
    Mutant(
        "data files of one name are written at a time",
        "_registry/places.py",
        "            if first == leader[number]:\n",
        "            if True:\n",
        f"{_TESTS}/test_registry.py::test_data_of_one_name_are_one_task",
    ),
    Mutant(
        "data files of another run are replaced",
        "_onnx/files/save.py",
        "paths.put_where_none_is(folder / location, target)",
        "os.rename(folder / location, target)",
        f"{_TESTS}/test_registry.py::test_a_data_file_that_appears_meanwhile_stays",
    ),
    Mutant(
        "data files of another run are removed",
        "_onnx/files/save.py",
        "if paths.identity(path) == made]",
        "if True]",
        f"{_TESTS}/test_registry.py::test_a_data_file_that_appears_meanwhile_stays",
    ),
    Mutant(
        "two models are written to one file",
        "_registry/places.py",
        "            if owner != item.model\n",
        "            if False\n",
        f"{_TESTS}/test_registry.py::test_two_models_of_one_name",
    ),
    Mutant(
        "weights may have the name of the index, or of another model",
        "_registry/work.py",
        "        if taken or (is_one_of_many and of_the_run):\n",
        "        if False:\n",
        f"{_STRANGE}::test_data_that_a_file_of_the_run_would_replace",
    ),
    Mutant(
        "a link in the output folder is followed",
        "_registry/places.py",
        "        if not is_inside(folder, top):\n",
        "        if False:\n",
        f"{_STRANGE}::test_nothing_is_written_outside_of_the_output_folder",
    ),
    Mutant(
        "a pattern follows links",
        "_registry/finding.py",
        "                    if is_last or not path.is_symlink():\n",
        "                    if True:\n",
        f"{_STRANGE}::test_a_pattern_follows_no_link_to_a_folder",
    ),
    Mutant(
        "a model is written over",
        "_registry/places.py",
        "            if _real(path) in models:\n",
        "            if False:\n",
        f"{_TESTS}/test_registry.py::test_no_model_is_written_over",
    ),
    Mutant(
        "what a run has written is a model of the next",
        "_registry/finding.py",
        "            elif ours is None or paths.identity(path) != ours:\n",
        "            else:\n",
        f"{_TESTS}/test_registry.py::test_an_output_folder_among_the_models",
    ),
    Mutant(
        "names in the index are markup",
        "_registry/index.py",
        "    return html.escape(",
        "    return str(",
        f"{_TESTS}/test_registry.py::test_names_in_the_index_are_names",
    ),
    Mutant(
        "an index of a run that was interrupted is complete",
        "_command/registry.py",
        "        registry.write_index(reports, complete=False)\n        raise\n",
        "        registry.write_index(reports)\n        raise\n",
        f"{_TESTS}/test_resuming.py::test_interrupted_and_resumed",
    ),
    Mutant(
        "the last exit code is the worst",
        "_command/registry.py",
        "    return max(report.code for report in reports)\n",
        "    return reports[-1].code\n",
        f"{_TESTS}/test_registry.py::test_the_tree_and_its_bytes",
    ),
    Mutant(
        "what lies where in a file with holes does not count",
        "_registry/fingerprint.py",
        'digest.update(b"" if start == 0 else f"\\0{start}\\0".encode())',
        "pass",
        "tests/test_fingerprint.py",
    ),
    Mutant(
        "how long a file with holes is does not count",
        "_registry/fingerprint.py",
        'digest.update(b"" if end == size else f"\\0{size}".encode())',
        "pass",
        "tests/test_fingerprint.py",
    ),
    Mutant(
        "numbers of a report that are none go into the index",
        "_registry/report.py",
        "and all(type(each) in (int, float) and 0 <= each < math.inf for each in numbers)",
        "and True",
        "tests/cli/test_strange_folders.py::test_a_report_of_other_types_is_none",
    ),
)
