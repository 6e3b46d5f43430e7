"""What worker processes have in common: they end with the process that started them."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Let this worker end when its parent does, however it does; call it in the worker, once.

    A worker of a killed parent would otherwise wait for work for ever.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
