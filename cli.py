"""The bnfold command, run from a checkout: ``python cli.py model.onnx -o fused.onnx``."""

from bnfold._command.guard import main

if __name__ == "__main__":
    main()
