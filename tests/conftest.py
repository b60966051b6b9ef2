import os

# One test's decode threads and another's model must not fight over two cores, and numbers must not depend on the count.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
