"""Promise 3: whatever is flipped, cut, emptied, deleted, swapped or replaced in a repository, `verify` finds it and
names the points that rest on it, and a restore never hands out wrong bytes."""

import itertools
import os
import random
import shutil
import subprocess

import pytest

from lib.share import every_second, one_in_five
from lib.world import MIB, World

SIZE = 2 * MIB + 12345
FLIPS = int(os.environ.get("MUTATION_FLIPS", "1"))      # of each file
SEED = int(os.environ["SENDENSE_TEST_SEED"])     # conftest.py gives one


@pytest.fixture(params=[0, 1], ids=["plain", "zstd"])
def chain(request, hub, place, cli):
    """Two VMs; the first has a chain of three points, the second one point that no damage of the first may touch."""
    world = World(hub, place)
    world.add_repository(compression=request.param)
    _, (image,) = world.add_vm("first", sizes=(SIZE,))
    with open(image, "r+b") as f:
        f.seek(MIB)
        f.write(b"what can be compressed " * 10000)
    _, (world.other_image,) = world.add_vm("second", sizes=(MIB,), seed=2)
    rand = random.Random(1)
    points, references = [], []
    for step in range(3):
        if step:
            with open(image, "r+b") as f:
                f.seek(rand.randrange(SIZE - 70000))
                f.write(rand.randbytes(70000))
        points.append(cli.ok("backup", "first", "--repo", "main").split()[-1])
        references.append(shutil.copy(image, world.folder / f"reference-{step}"))
    other = cli.ok("backup", "second", "--repo", "main").split()[-1]
    return world, cli, points, references, other


def files_of(world):
    root = world.repository["path"]
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)


def point_of(path, points, other):
    """Which point a file belongs to, by its name; None for repository.json."""
    for point in [*points, other]:
        if os.path.basename(path).startswith(point):
            return point
    return None


def flip(path, rand):
    at = rand.randrange(os.path.getsize(path))
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ (1 << rand.randrange(8))]))
    return f"bit in byte {at} flipped"


def cut(path, rand):
    keep = rand.randrange(os.path.getsize(path))
    os.truncate(path, keep)
    return f"cut to {keep}"


def grow(path, _rand):
    with open(path, "ab") as f:
        f.write(b"\0")
    return "one byte longer"


def empty(path, _rand):
    os.truncate(path, 0)
    return "emptied"


def delete(path, _rand):
    os.unlink(path)
    return "deleted"


def expect_named(resting, result, context):
    """Damaged itself, or said to rest on what is. A line that calls a point good names it as well."""
    lines = (result.out + result.err).splitlines()
    for point in resting:
        assert any(f"affected: {point}" in line or (point in line and "damaged" in line) for line in lines), \
            f"{point} is not named\n{context}"


def expect_found(chain, path, what):
    """verify fails, and names every point that rests on the file."""
    world, cli, points, _, other = chain
    result = cli.run("verify", "--repo", "main")
    context = f"{os.path.basename(path)}: {what} (seed {SEED})\n{result.out}\n{result.err}"
    assert result.status in (1, 3), context
    hit = point_of(path, points, other)
    if hit is None:  # repository.json: nothing in it can be trusted
        return
    assert result.status == 3, context
    resting = points[points.index(hit):] if hit in points else [other]
    expect_named(resting, result, context)
    suspects = {b["backup_id"] for b in world.api.get("/backups").expect(200)["backups"] if b["suspect"]}
    # a later point whose own clusters cover the damage reads well, is found good after all, and is not suspect
    assert hit in suspects and suspects <= set(resting), context


def expect_no_wrong_bytes(chain):
    """Each point restores to its reference, or not at all; one that is not suspect restores."""
    world, cli, points, references, other = chain
    suspects = {b["backup_id"] for b in world.api.get("/backups").expect(200)["backups"] if b["suspect"]}
    available = world.api.get("/repositories/main").expect(200)["available"]
    for point, reference in zip([*points, other], [*references, world.other_image]):
        target = world.folder / "restored"
        result = cli.run("restore", point, "--disk", "0", "--to", target, "--force")
        if result.status == 0:
            assert subprocess.run(["cmp", target, reference], check=False).returncode == 0, f"{point} (seed {SEED})"
            target.unlink()
        else:
            assert not target.exists()
            assert point in suspects or not available, f"{point} (seed {SEED}): {result.err}"


@pytest.mark.parametrize("mutate", [flip, cut, grow, empty, delete])
def test_each_file_mutated(chain, mutate):
    world, cli, points, references, other = chain
    rand = random.Random(SEED)
    assert cli.run("verify", "--repo", "main").status == 0
    for path in every_second(files_of(world)):
        saved = world.folder / "saved"
        shutil.copy2(path, saved)
        for _ in range(FLIPS if mutate is flip else 1):
            what = mutate(path, rand)
            expect_found(chain, path, what)
            expect_no_wrong_bytes(chain)
            shutil.copy2(saved, path)
            # good again: a verify says so, and takes the suspicion back
            result = cli.run("verify", "--repo", "main")
            assert result.status == 0, f"{path}: {what}: {result.out}{result.err}"


def changes_of_places(world, points, other):
    """(what is done, two files of one kind, the points that rest on either): within the chain, and between two VMs."""
    for (n, a), (m, b) in itertools.combinations(enumerate([*points, other]), 2):
        for kind in ("qcow2", "hashes", "json"):
            older, newer = [next(p for p in files_of(world) if point_of(p, points, other) == x and p.endswith(kind))
                            for x in (a, b)]
            both = points[n:] + ([other] if b == other else [])
            yield "swapped", older, newer, both
            yield "replaced by its older self", older, newer, points[m:] if b != other else [other]


def test_swapped_with_a_sibling_or_replaced_by_an_older_one(chain):
    """Two images, two .hashes or two records that changed places are found, whatever each of them says of itself; so is
    one that has come back in the place of a newer one."""
    world, cli, points, _, other = chain
    aside = world.folder / "aside"
    for what, older, newer, resting in one_in_five(changes_of_places(world, points, other)):
        if what == "swapped":
            os.rename(older, aside), os.rename(newer, older), os.rename(aside, newer)
        else:
            shutil.copy2(newer, aside), shutil.copy2(older, newer)
        result = cli.run("verify", "--repo", "main")
        context = f"{newer}: {what}, {older} (seed {SEED})\n{result.out}{result.err}"
        assert result.status == 3, context
        expect_named(resting, result, context)
        expect_no_wrong_bytes(chain)
        if what == "swapped":
            os.rename(older, aside), os.rename(newer, older), os.rename(aside, newer)
        else:
            os.rename(aside, newer)
        assert cli.run("verify", "--repo", "main").status == 0, context


def test_every_kind_of_region_of_an_image_is_covered(chain):
    """A bit in each 4 KiB page of a small increment's image: header, tables, refcounts, data, padding."""
    world, cli, points, _, _ = chain
    path = next(p for p in files_of(world) if p.endswith("-incr.qcow2") and points[2] in p)
    rand = random.Random(SEED)
    pages = range(0, os.path.getsize(path), 4096)
    for page in rand.sample(pages, min(len(pages), 40)):
        with open(path, "r+b") as f:
            f.seek(page + rand.randrange(4096))
            at = f.tell()
            byte = f.read(1)[0]
            f.seek(at)
            f.write(bytes([byte ^ 0x10]))
            f.flush()
            result = cli.run("verify", points[2])
            assert result.status == 3, f"byte {at} of {path} (seed {SEED}): {result.out}{result.err}"
            f.seek(at)
            f.write(bytes([byte]))
    assert cli.run("verify", points[2]).status == 0

