# The way of the checkpoint channel, where a test sees which message passes.
#
# Copyright (c) 2026 the qemu-colo developers
# SPDX-License-Identifier: GPL-2.0-or-later

import struct
import threading

from colo_way import Way

# docs/interop/channel.rst
EXIT, TOKEN, YIELD = 16, 18, 20
HEAD = 20


class Post(Way):
    """As Way, message by message, in both directions. before(kind, fn): fn() is called once, when
    the next message of that kind has come and has not been passed on; where it returns False it
    never is, nor is anything after it in that direction."""

    def __init__(self, *args, **kw):
        self.wanted = {}
        super().__init__(*args, **kw)

    def before(self, kind, fn=lambda: True):
        """The event that tells when fn() is over."""
        done = threading.Event()
        self.wanted[kind] = (fn, done)
        return done

    def pump(self, one, other, port):
        def exactly(n):
            data = b""
            while len(data) < n:
                more = one.recv(min(n - len(data), 1 << 16))
                if not more:
                    raise OSError("the end")
                data += more
            return data
        silent = False
        try:
            while True:
                head = exactly(HEAD)
                kind, _, length = struct.unpack(">HHI", head[4:12])
                body = exactly(length)
                fn, done = self.wanted.pop(kind, (None, None))
                if fn:
                    silent = fn() is False
                    done.set()
                if not silent:
                    self.pass_on(head + body, other, port)
        except OSError:
            self.breaks(one, other)
