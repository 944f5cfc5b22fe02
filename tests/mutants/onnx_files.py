"""Bugs in files of ONNX, and in what is written into models: `_onnx/files`, `_onnx/write`."""

from __future__ import annotations

from .planting import Mutant

MUTANTS = (
    Mutant(
        "a Gemm that was a MatMul keeps the constant that an Add had, whatever the bias is",
        "_onnx/write/parameters.py",
        "    return constant.dtype == values.dtype and bool((constant.load() == values).all())",
        "    return constant.dtype == values.dtype",
        "tests/test_matmul.py",
    ),
    Mutant(
        "a difference is turned around, and its terms are not",
        "_onnx/write/parameters.py",
        "node.input[:] = [node.input[n] for n in edit.form.order]",
        "pass",
        "tests/carry/test_signs.py",
    ),
    Mutant(
        "a shared weight is written over",
        "_onnx/write/constants.py",
        "and self._uses[owner.path][old.name] == 1",
        "and self._uses[owner.path][old.name] >= 1",
        "tests/test_sharing.py",
    ),
    Mutant(
        "the beta of a Gemm counts twice",
        "_onnx/write/parameters.py",
        "if site.bias_factor != 1.0:",
        "if False:",
        "tests/test_gemm.py",
    ),
    Mutant(
        "the last reader of a shared weight has a copy of its own",
        "_onnx/write/constants.py",
        "if old is None or known else self._holder",
        "if old is None else self._holder",
        "tests/test_sharing.py",
    ),
    Mutant(
        "a sparse tensor that others read is rewritten",
        "_onnx/write/constants.py",
        "if old is not None and held is not None and may(scope, old, values.shape, values.dtype):",
        "if old is not None and held is not None:",
        "tests/test_sparse.py",
    ),
    Mutant(
        "a weight that is made later is written as it was",
        "_onnx/files/lean.py",
        "if place.make is not None:",
        "if False:",
        "tests/test_lean.py::test_a_fold_is_that_of_the_whole_model",
    ),
    Mutant(
        "a shared weight is written over where it is made later",
        "_onnx/write/constants.py",
        "if known or not self._may_rewrite(scope, old, old.shape, dtype):",
        "if known:",
        "tests/test_lean.py::test_a_weight_that_another_reads_is_not_made_later",
    ),
    Mutant(
        "data files are left where a rename failed",
        "_onnx/files/save.py",
        "self._remove(old if paths.identity(self.destination) == new else unread)",
        "self._remove(old if paths.identity(self.destination) == new else ())",
        "tests/cli/test_writing.py::test_an_existing_output_survives_a_rename_that_fails",
    ),
    Mutant(
        "external weights written at the start of their file",
        "_onnx/files/external.py",
        "file.seek(offset)\n            file.write(data)\n            _externalize(tensor, t",
        "file.seek(0)\n            file.write(data)\n            _externalize(tensor, t",
        "tests/test_external_data.py",
    ),
    Mutant(
        "any suffix will do for a model",
        "_onnx/files/text_forms.py",
        "if _OTHERS.fullmatch(suffix):",
        "if False:",
        "tests/cli/test_kinds.py",
    ),
    Mutant(
        "data that shrink while they are looked at end the process",
        "_onnx/tensors.py",
        "            data = file.read(size)\n",
        "            data = np.memmap(path, np.uint8, 'r', offset, size) if size else b''\n",
        "tests/test_external_data.py",
    ),
    Mutant(
        "an initializer that nobody ever read becomes an input",
        "_onnx/write/lists.py",
        "names = unread(graph).difference(before)",
        "names = unread(graph)",
        "tests/test_fidelity.py",
    ),
    Mutant(
        "what bodies read is read by the graph around them",
        "_onnx/write/lists.py",
        "known.update(name for node in graph.node for name in node.input)",
        "known.update(name for node in graph.node for name in node.input)\n"
        "    inner = [n for v in graph.node for a in v.attribute for n in a.g.node]\n"
        "    known.update(name for node in inner for name in node.input)",
        "tests/test_fidelity.py",
    ),
    Mutant(
        "a tensor behind many numbers of an attribute is forgotten",
        "_onnx/files/lean.py",
        "return held if len(held) <= _FEW else None",
        "return held",
        "tests/test_lean.py",
    ),
    Mutant(
        "a model that is not replaced loses its data",
        "_onnx/files/save.py",
        "self._remove(old if paths.identity(self.destination) == new else unread)",
        "self._remove(unread if self.finished.exists() else old)",
        "tests/test_external_data.py",
    ),
    Mutant(
        "an interrupt leaves old data that nobody reads",
        "_onnx/files/save.py",
        "self._remove(old if paths.identity(self.destination) == new else unread)",
        "self._remove(() if paths.identity(self.destination) == new else unread)",
        "tests/cli/test_killed.py",
    ),
    Mutant(
        "a weight that is copied from file to file begins a byte too late",
        "_onnx/files/lean.py",
        "        file.seek(place.start)",
        "        file.seek(place.start + 1)",
        "tests/test_lean.py",
    ),
    Mutant(
        "a weight of a lean model is taken for one of an external file",
        "_onnx/write/constants.py",
        "if held.data_location == TensorProto.EXTERNAL and not tensors.is_own(held):",
        "if held.data_location == TensorProto.EXTERNAL:",
        "tests/test_lean.py",
    ),
    Mutant(
        "weights are read from a file that has changed meanwhile",
        "_onnx/tensors.py",
        "if known and mark(file) != known:",
        "if False:",
        "tests/test_lean.py",
    ),
    Mutant(
        "an error of onnxruntime's quantization ends bnfold",
        "_run/int8.py",
        "    except Exception as error:  # What",
        "    except RuntimeError as error:  # What",
        "tests/verify/test_int8.py",
    ),
    Mutant(
        "a tensor stays in the file that is in an attribute of another type",
        "_onnx/files/lean.py",
        "if told != [AttributeProto.TENSOR]:",
        "if False:",
        "tests/test_lean.py",
    ),
)
