"""A proxy between the client and the hub that holds chosen calls: the moments in which something is killed."""

import select
import socket
import threading

from lib.patience import patience
from lib.proxy import Proxy, _Handler

HOLD_SECONDS = patience(60)


class Gate(Proxy):
    """hold("complete") keeps the client's calls of that kind from the hub; hold("complete", after=True) keeps the hub's
    answer from the client. A hub that is not there closes the connection, as a dead one does."""

    def __init__(self, target_port):
        super().__init__(target_port)
        self.condition = threading.Condition()
        self.closed = {}        # (call, after): how many are held there

    def __enter__(self):
        super().__enter__()
        gate = self

        class Handler(_Handler):
            owner = gate

            def forward(self):
                gate.pass_through(self.path, False)
                if self.peer_is_gone():     # killed meanwhile: it never sent this
                    self.close_connection = True
                else:
                    super().forward()

            def peer_is_gone(self):
                readable = select.select([self.connection], [], [], 0)[0]
                return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

            def pass_on(self, response):
                gate.pass_through(self.path, True)
                return super().pass_on(response)

            def send_error(self, *_):
                self.close_connection = True

            do_GET = do_POST = do_PATCH = do_DELETE = forward

        self.server.RequestHandlerClass = Handler
        return self

    def __exit__(self, *args):
        self.open()
        super().__exit__(*args)

    def hold(self, call, after=False):
        with self.condition:
            self.closed[call, after] = 0

    def pass_through(self, path, after):
        where = (path.rsplit("/", 1)[1], after)
        with self.condition:
            if where in self.closed:
                self.closed[where] += 1
                self.condition.notify_all()
                self.condition.wait_for(lambda: where not in self.closed, HOLD_SECONDS)

    def wait_held(self, call, after=False, seconds=60):
        with self.condition:
            assert self.condition.wait_for(lambda: self.closed[call, after] > 0, patience(seconds)), \
                f"{call} was not called"

    def open(self):
        """Lets everything through."""
        with self.condition:
            self.closed.clear()
            self.condition.notify_all()
