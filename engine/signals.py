"""SIGTERM and Ctrl-C while a run trains: the step ends, everything is saved, and then the run stops."""

import contextlib
import os
import signal
import threading

from engine import distributed


class StopNow(KeyboardInterrupt):
    """A request to stop, raised where the work can be done again."""


class StopSignal:
    """SIGTERM and Ctrl-C as a request to stop after the step; a second one stops at once."""

    def __init__(self):
        self.signum, self.now, self.previous = None, False, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self.previous = {signum: signal.signal(signum, self.request) for signum in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)

    def request(self, signum, frame):
        """Note the signal; the loop looks after each step."""
        if self.now:
            self.signum = signum
            raise StopNow
        if self.signum is not None:
            if signum == signal.SIGTERM and distributed.launch():  # torchrun passes on what may have come already
                return
            raise KeyboardInterrupt
        self.signum = signum
        os.write(2, b"stopping after this step ...\n")  # print might be what the signal interrupts

    @contextlib.contextmanager
    def at_once(self):
        """Return the context in which a request raises StopNow, unless other processes would wait for this one."""
        self.now = distributed.world_size() == 1
        try:
            if self.now and self.signum is not None:
                raise StopNow
            yield
        finally:
            self.now = False

    def agreed(self, ask):
        """Tell whether to stop; several processes must agree, so they look only where `ask` is set."""
        if distributed.world_size() == 1:
            return self.signum is not None
        return ask and any(signum is not None for signum in distributed.gather(self.signum))
