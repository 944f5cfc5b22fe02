"""The bnfold command as a module: ``python -m bnfold model.onnx -o fused.onnx``."""

from bnfold._command.guard import main

if __name__ == "__main__":
    main(prog_name="bnfold")
