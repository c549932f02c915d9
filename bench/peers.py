"""The same work by the tools that QEMU and libnbd bring along. Each leaves its data durable, and itself ended."""

import contextlib
import os
import secrets
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from measure import run


# qemu-nbd maps and unmaps memory for nearly every request; these keep it. Part of the best that stock can do.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "268435456", "MALLOC_TRIM_THRESHOLD_": "536870912", "MALLOC_ARENA_MAX": "2"}


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def qemu_nbd(image, *options, environment=None, port=None):
    """An export of an image over a unix socket, for as long as the block runs; its URI. port: the options say where."""
    with tempfile.TemporaryDirectory(prefix="sb-") as folder:
        path = Path(folder, "s")
        command = ["qemu-nbd", "-t", *([] if port else ["-k", path]), *map(str, options), image]
        with subprocess.Popen(command, env={**os.environ, **(environment or {})}) as server:
            try:
                while not (listens(port) if port else path.exists()):
                    if server.poll() is not None:
                        raise RuntimeError(f"qemu-nbd ended with {server.returncode}")
                    time.sleep(0.002)
                yield f"nbd+unix:///?socket={path}"
            finally:
                server.terminate()
        if server.returncode != 0:
            raise RuntimeError(f"qemu-nbd ended with {server.returncode}")


def create(image, size, *options):
    image.unlink(missing_ok=True)
    run("qemu-img", "create", "-q", "-f", "qcow2", *options, image, size)


def nbdcopy_tls(source, image):
    """The same over TCP and TLS with a key that both have, as it comes."""
    create(image, os.path.getsize(source))
    with tempfile.TemporaryDirectory(prefix="sb-") as folder, socket.socket() as free:
        keys = Path(folder, "keys.psk")
        keys.write_text(f"bench:{secrets.token_hex(32)}\n")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        with qemu_nbd(image, "-f", "qcow2", "-b", "127.0.0.1", "-p", port, "--object",
                      f"tls-creds-psk,id=tls,endpoint=server,dir={folder}", "--tls-creds", "tls", port=port):
            run("nbdcopy", "--flush", source, f"nbds://bench@127.0.0.1:{port}/?tls-psk-file={keys}")


def nbdcopy(source, image):
    """Through NBD into a QCOW2, as it comes."""
    create(image, os.path.getsize(source))
    with qemu_nbd(image, "-f", "qcow2") as uri:
        run("nbdcopy", "--flush", source, uri)


def nbdcopy_best(source, image):
    """The same with what measured best."""
    create(image, os.path.getsize(source))
    with qemu_nbd(image, "-f", "qcow2", "--cache=none", "--shared=4", environment=KEEP_MEMORY) as uri:
        run("nbdcopy", "--flush", "--connections=4", "--requests=64", "--request-size=1048576", "--destination-is-zero",
            source, uri)


def convert(source, image, *options):
    """Local: no NBD, no server. qemu-img flushes what it wrote before it ends."""
    image.unlink(missing_ok=True)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-t", "none", *options, source, image)


def increment(copier, source, base, image, ranges):
    """Changed ranges, one request at a time, into a new QCOW2 on top of `base`."""
    create(image, os.path.getsize(source), "-b", base, "-F", "qcow2")
    reading = f"driver=raw,file.driver=file,file.filename={source},force-share=on"
    lines = "".join(f"{offset} {length}\n" for offset, length in ranges).encode()
    with qemu_nbd(reading, "--read-only", "--image-opts") as from_uri, qemu_nbd(image, "-f", "qcow2") as to_uri:
        subprocess.run([copier, from_uri, to_uri], input=lines, check=True)
