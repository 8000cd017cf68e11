"""What a worker process of Dask does before it works for a sweep: `--preload wanlab.sweeps._worker`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import Any


def dask_setup(worker: Any) -> None:
    """Called by Dask in the worker's process."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the one who asked stops us
    logging.getLogger("distributed").setLevel(logging.ERROR)
    if "torch" in sys.modules and (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        sys.modules["torch"].set_num_threads(int(threads))  # read before the variable was set
