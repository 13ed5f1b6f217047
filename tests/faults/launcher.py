"""Starts `kairos` commands as processes of their own, at once: `python -m tests.faults.launcher`.

Each line of standard input is JSON, ``{"arguments": [...], "environment": {...}, "log": "path"}``; the answer is the
process's id. The command line is imported once and forked, for fifty kills want fifty starts. Whoever started it may
kill it: nothing is shared with it but the imported code. All end with the launcher.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading

#: Linux: the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve until standard input ends."""
    import service.app
    import service.cli
    import service.erase_files
    import service.feature_checks
    import service.worker  # noqa: F401 - what a worker and an API process load
    from features.events import EventColumns
    from features.kernel import sweep
    from features.views import DEFAULT_VIEWS

    # A worker checks its features once a day, beside the sending; each start would load or compile the kernel anew.
    sweep(EventColumns.empty(), [1], [0], DEFAULT_VIEWS)
    # Threads of Arrow and jemalloc mend themselves after a fork; one of ours would not.
    if threading.active_count() != 1:
        raise RuntimeError(f"{threading.enumerate()} run after the imports; a fork would copy their locks without them")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel clears away who ended
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(order)
        print(child, flush=True)


def _become(order: dict) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for ours, standard in ((null, 0), (log, 1), (log, 2)):
        os.dup2(ours, standard)
    for name in [name for name in os.environ if name.startswith("KAIROS_")]:
        del os.environ[name]
    os.environ.update(order["environment"])
    code = 1
    try:
        from service.cli import main as kairos

        kairos(order["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
