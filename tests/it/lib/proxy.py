"""A recording reverse proxy, so that what the CLI and the client say to the hub is checked as well.

    with Proxy(hub.port) as proxy:
        run([...], env={"SHA_API_URL": proxy.url})
"""

import http.client
import http.server
import threading

from lib import traffic
from lib.patience import patience

HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "te", "trailer", "upgrade"}


class Proxy:
    def __init__(self, target_port, target_host="127.0.0.1"):
        self.target = (target_host, target_port)
        self.exchanges = []     # (method, path, status), in the order of their ends

    def __enter__(self):
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner = None

    def log_message(self, *_):
        pass

    def forward(self):
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length) if length else None
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
        connection = http.client.HTTPConnection(*self.owner.target, timeout=patience(120))
        try:
            connection.request(self.command, self.path, body=body, headers=headers)
            response = connection.getresponse()
            content = self.pass_on(response)
        except OSError as e:
            self.send_error(502, str(e))
            return
        finally:
            connection.close()
        traffic.record(self.command, self.path, headers, body, response.status, response.getheaders(), content)
        self.owner.exchanges.append((self.command, self.path, response.status))

    def pass_on(self, response):
        """Sends bytes on as they come, so that a stream stays one."""
        self.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        content = b""
        while chunk := response.read1(65536):
            content += chunk
            try:
                self.wfile.write(chunk)
                self.wfile.flush()
            except OSError:
                break       # the peer has seen enough
        return content

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = forward
