"""Before anything imports torch: the tests run beside each other, so each computes on one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
