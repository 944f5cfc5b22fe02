"""One thread for NumPy and PyTorch, before either is loaded: what tests compute is small, and
threads that wait for work take time of the processor.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
