"""Disk images that a test changes between two backups, and of which it knows every byte."""

import ctypes
import os
import subprocess

from lib.patience import patience

CLUSTER = 65536
SECTOR = 512
KEEP_SIZE_PUNCH_HOLE = 3
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def punch_hole(fd, offset, length):
    if _libc.fallocate(fd, KEEP_SIZE_PUNCH_HOLE, offset, length) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def tool(*args):
    done = subprocess.run([str(a) for a in args], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=patience(60), check=False)
    # qemu-io says what failed, and may exit with 0
    assert done.returncode == 0 and "failed" not in done.stdout, f"{args}: {done.stdout}{done.stderr}"
    return done.stdout


class Image:
    """A raw or qcow2 file; `content` is what a reader of the disk must see."""

    def __init__(self, path, fmt, content):
        self.path, self.format, self.content = path, fmt, bytearray(content)
        if fmt == "raw":
            path.write_bytes(content)
        else:
            flat = path.with_suffix(".flat")
            flat.write_bytes(content)
            tool("qemu-img", "convert", "-f", "raw", "-O", fmt, flat, path)
            flat.unlink()

    @property
    def size(self):
        return len(self.content)

    @property
    def step(self):
        """Sizes and offsets are multiples of it."""
        return 1 if self.format == "raw" else SECTOR

    def write(self, offset, data):
        self.content[offset:offset + len(data)] = data
        if self.format == "raw":
            with open(self.path, "r+b") as f:
                f.seek(offset)
                f.write(data)
            return
        piece = self.path.with_suffix(".piece")
        piece.write_bytes(data)
        tool("qemu-io", "-f", "qcow2", "-c", f"write -s {piece} {offset} {len(data)}", self.path)
        piece.unlink()

    def zero(self, offset, length, how):
        """how: 'data' (zeros are written), 'zero' (the image format's own zero), 'hole'."""
        if how == "data":
            return self.write(offset, bytes(length))
        if self.format == "raw":
            with open(self.path, "r+b") as f:
                punch_hole(f.fileno(), offset, length)
        elif how == "hole":
            # only whole clusters are discarded
            end = self.size if offset + length >= self.size else (offset + length) // CLUSTER * CLUSTER
            offset = -(-offset // CLUSTER) * CLUSTER
            length = end - offset
            if length <= 0:
                return None
            tool("qemu-io", "-f", "qcow2", "-d", "unmap", "-c", f"discard {offset} {length}", self.path)
        else:
            tool("qemu-io", "-f", "qcow2", "-c", f"write -z {offset} {length}", self.path)
        self.content[offset:offset + length] = bytes(length)
        return None

    def resize(self, size):
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))
        if self.format == "raw":
            os.truncate(self.path, size)
        else:
            tool("qemu-img", "resize", "-q", "-f", "qcow2", "--shrink", self.path, size)
            # of a cluster that is cut in two and made whole again, QEMU shows the old bytes
            flat = self.path.with_suffix(".flat")
            tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.path, flat)
            self.content = bytearray(flat.read_bytes())
            flat.unlink()


# ---- random changes

SIZES = (1, 511, 4097, 65535, 65536, 65537, 200_000, 1 << 20, (1 << 20) + 1, 1_234_567, (2 << 20) + 513, 3 << 20)


def random_size(rng, fmt):
    size = rng.choice(SIZES)
    return size if fmt == "raw" else -(-size // SECTOR) * SECTOR


def random_data(rng, length):
    """Few patterns, so that what was there comes back: A, 0, A again."""
    kind = rng.randrange(4)
    return rng.randbytes(length) if kind == 0 else bytes([rng.choice((0, 0xa1, 0xb2, 0xc3))]) * length


def random_content(rng, size):
    content = bytearray(size)
    for _ in range(rng.randrange(6)):
        at = rng.randrange(size)
        n = min(size - at, rng.randrange(1, 4 * CLUSTER))
        content[at:at + n] = random_data(rng, n)
    return bytes(content)


def random_range(rng, size, step=1):
    """(offset, length) below size, often at the edges of clusters and at the disk's end; None: too small a disk."""
    clusters = -(-size // CLUSTER)
    at = rng.randrange(clusters) * CLUSTER
    length = rng.choice((CLUSTER, CLUSTER, 2 * CLUSTER, 5 * CLUSTER, 4096, SECTOR, rng.randrange(1, CLUSTER)))
    kind = rng.randrange(4)
    if kind == 0:
        at += rng.randrange(-SECTOR, CLUSTER)
    elif kind == 1:
        at = size - length
    at = max(0, at) // step * step
    length = min(length, size - at)
    length = max(step, length // step * step)
    return (at, length) if at + length <= size else None


def mutate(rng, image, changes):
    """Some random changes; returns them in words."""
    said = []
    for _ in range(changes):
        where = random_range(rng, image.size, image.step)
        if not where:
            continue
        offset, length = where
        how = rng.choice(("write", "write", "write", "data", "zero", "hole"))
        if how == "write":
            image.write(offset, random_data(rng, length))
        else:
            image.zero(offset, length, how)
        said.append(f"{how} {offset}+{length}")
    return said
