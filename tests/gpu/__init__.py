"""What holds on a GPU. Without one every test is skipped, and says so.

On a machine with CUDA and the wheels of onnxruntime-gpu and torch: ``pytest tests/gpu`` and
``python -m tests.gpu``, which does both this and the timings, and writes a report.
``BNFOLD_GPU=cpu`` lets the CPU take the place of the GPU, to try the tests themselves.
"""
