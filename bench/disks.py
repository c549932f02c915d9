"""Disks with real data in them, and changes to them."""

import os
import random
import subprocess

MIB = 1 << 20
GIB = 1 << 30
CLUSTER = 65536
RUN = 64 * MIB


def tree(size):
    """Yields a tar archive of /usr, again and again, in MiB, `size` bytes in all."""
    left = size
    while left > 0:
        had = left
        with subprocess.Popen(["tar", "-C", "/", "-cf", "-", "usr"], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL) as tar:
            while left > 0 and len(piece := tar.stdout.read(min(MIB, left))) == min(MIB, left):
                left -= len(piece)
                yield piece
            tar.kill()
        if left == had:
            raise RuntimeError("tar packs nothing of /usr")


def make(path, data, size):
    """A sparse raw file of `size` bytes: `data` bytes of a real tree, in runs of 64 MiB evenly spread."""
    runs = -(-data // RUN)
    with open(path, "wb") as f:
        f.truncate(size)
        for number, piece in enumerate(tree(data)):
            place, within = divmod(number * MIB, RUN)
            if within == 0:
                f.seek(size * place // runs // MIB * MIB)
            f.write(piece)
        f.flush()
        os.fsync(f.fileno())
    return path


def samples(folder, size, count=64):
    """Files with different pieces of a real tree: what changes are made of."""
    folder.mkdir()
    paths = []
    for number, piece in enumerate(tree(count * 8 * MIB)):
        if number % 8 == 4:
            paths.append(folder / str(number))
            paths[-1].write_bytes((piece * -(-size // MIB))[:size])
    return paths


def scattered(size, count, length, within, seed):
    """`count` ranges of `length` bytes at the start of different, random pieces of `within` bytes; ascending."""
    places = random.Random(seed).sample(range(size // within), count)
    return [(place * within, length) for place in sorted(places)]


def change(vm, ranges, files):
    """The guest writes: each range gets a file's bytes."""
    for number, (offset, length) in enumerate(ranges):
        vm.write_from(0, offset, length, files[number % len(files)])
