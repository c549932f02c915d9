"""Stands between a hub and its MariaDB: loses a COMMIT, or the answer to it, with the connection; holds it back; or
lets something be done before it."""

import contextlib
import socket
import threading

COMMIT = b"\x03COMMIT"      # COM_QUERY


class SqlGate:
    def __init__(self, port):
        self.server_port, self.lost, self.countdown, self.how = port, 0, 0, None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.go_on = threading.Event()      # of "hold"
        self.before, self.times = None, 0

    def __enter__(self):
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def lose(self, nth, how):
        """The nth COMMIT from here on; how: "it" does not reach the server, "answer" does not reach the hub, "hold":
        it comes when go_on is set, "late": so does the answer to it."""
        with self.lock:
            self.lost, self.countdown, self.how = 0, nth, how

    def precede(self, times, call):
        """Each of that many COMMITs from here on comes to the server when this call has returned."""
        with self.lock:
            self.before, self.times = call, times

    def _precede(self, data):
        with self.lock:
            if COMMIT not in data or self.times == 0:
                return
            self.times -= 1
            self.before()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                hub, _ = self.listener.accept()
                threading.Thread(target=self._relay, args=(hub,), daemon=True).start()

    def _is_the_one(self, data):
        with self.lock:
            if COMMIT not in data or self.countdown == 0:
                return False
            self.countdown -= 1
            self.lost += self.countdown == 0
            return self.countdown == 0

    def _relay(self, hub):
        """Hub and server speak in turns."""
        with contextlib.suppress(OSError), hub, socket.create_connection(("127.0.0.1", self.server_port)) as server:
            cut, late = threading.Event(), threading.Event()

            def back():
                with contextlib.suppress(OSError):
                    while (data := server.recv(1 << 16)) and not cut.is_set():
                        if late.is_set():
                            self.go_on.wait()
                        hub.sendall(data)
                    hub.shutdown(socket.SHUT_RDWR)

            thread = threading.Thread(target=back, daemon=True)
            thread.start()
            while data := hub.recv(1 << 16):
                self._precede(data)
                is_the_one = self._is_the_one(data)
                if is_the_one and self.how == "hold":
                    self.go_on.wait()
                elif is_the_one and self.how == "late":
                    late.set()
                elif is_the_one:
                    cut.set()
                    if self.how == "answer":
                        server.sendall(data)
                        thread.join()   # it has answered
                    break
                server.sendall(data)
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
                hub.shutdown(socket.SHUT_RDWR)
            thread.join()
