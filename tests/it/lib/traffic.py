"""Records exchanges with the API for tools/check-traffic: one JSON line each, in $SENDENSE_TRAFFIC_DIR."""

import json
import os
import threading

_lock = threading.Lock()


def record(method, path, request_headers, request_body, status, response_headers, response_body):
    """Headers: any mapping or list of pairs. Bodies: bytes or None. Without the variable nothing happens."""
    folder = os.environ.get("SENDENSE_TRAFFIC_DIR")
    if not folder:
        return
    line = json.dumps({
        "method": method,
        "path": path,
        "request_headers": dict(request_headers),
        "request_body": _text(request_body),
        "status": status,
        "response_headers": dict(response_headers),
        "response_body": _text(response_body),
    })
    with _lock:
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, f"{os.getpid()}.jsonl"), "a", encoding="utf-8") as f:
            f.write(line + "\n")


def _text(body):
    return None if body is None else body.decode("utf-8", errors="replace")
