"""Hubs over a real Galera cluster of three nodes, which are killed, stopped and cut off. docs/internals/galera.md.

Cut off is what Galera's gmcast.isolate does: the node's clients reach it, the other nodes do not.
"""

import contextlib
import itertools
import random
import shutil
import subprocess
import threading

import pytest

from lib.faults import pass_time
from lib.galera import MISSING, Galera
from lib.history import partial_files, wait_for
from lib.hub import HubError
from lib.hubs import STEPS, Hubs, again, by_hand
from lib.images import CLUSTER
from lib.mariadb import NAME, USER
from lib.patience import patience
from lib.share import one_of, share
from lib.sql_gate import SqlGate

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no Galera here: {', '.join(MISSING)} missing")

HARMS = ["kill", "freeze", "cut_off"]
LEASE = int(patience(30))   # a node that is frozen is noticed by its silence only: docs/internals/galera.md


@pytest.fixture(scope="module")
def nodes_of(tmp_path_factory):
    with Galera(tmp_path_factory.mktemp("galera") / "nodes") as made:
        yield made


@pytest.fixture
def cluster(nodes_of):
    """Whole, and nothing in the database."""
    nodes_of.heal()
    nodes_of.empty()
    return nodes_of


def make(cluster, make_hub, place, n=1, **more):
    """The first hub begins with the first node, the second one with the second one."""
    return Hubs(make_hub, place, [cluster.options(first=i) for i in range(n)], n=n, **more)


def same_everywhere(cluster):
    """What each node has of the jobs."""
    cluster.heal()
    rows = [n.sql("SELECT id, status, parent_id FROM backup_jobs ORDER BY id", NAME)
            for n in cluster.nodes]
    assert rows[0] == rows[1] == rows[2]
    return rows[0]


def prove_all(hubs, cluster, points):
    """Each of these is listed, nothing else is, and each of them is whole."""
    rows = same_everywhere(cluster)
    assert [r[1] for r in rows if r[1] not in ("completed", "failed", "cancelled")] == [], rows
    for hub in hubs.all:
        wait_for(lambda hub=hub: hub.api.get("/health").status == 200, "the hub is well")
    assert sorted(b["backup_id"] for b in hubs.prove(hubs.a)) == sorted(points)
    assert not partial_files(hubs.repository_path)


@pytest.mark.parametrize("harm, at", one_of(itertools.product(HARMS, STEPS)))
def test_a_node_is_gone_at_any_step(cluster, make_hub, place, harm, at):
    """A full backup and an increment by hand; the node that the hub is connected to goes before one of the steps."""
    hubs = make(cluster, make_hub, place, lease=LEASE)
    image = hubs.add_vm("web")
    first = hubs.point(hubs.a, "web")["backup_id"]
    image.write(CLUSTER, b"\x55" * CLUSTER)
    second = by_hand(hubs, at, getattr(cluster.nodes[0], harm))
    assert "another host of the database" in hubs.a.log
    hubs.equals(hubs.a, second, image.content)
    prove_all(hubs, cluster, [first, second])


@pytest.mark.parametrize("harm, moment", one_of(itertools.product([*HARMS[1:], HARMS[0]], range(4))))
def test_a_node_is_gone_at_any_moment(cluster, make_hub, place, harm, moment):
    """The real client: a full backup, then an increment while the node goes."""
    rng = random.Random(3000 + 10 * moment + HARMS.index(harm))
    hubs = make(cluster, make_hub, place, lease=LEASE)
    image = hubs.add_vm("web")
    points = [hubs.point(hubs.a, "web")["backup_id"]]
    image.write(CLUSTER, rng.randbytes(CLUSTER))
    body = {"vm_name": "web", "repository_id": hubs.repository}
    points.append(again(lambda: hubs.a.api.post("/backups", body), 201)["backup_id"])
    pass_time(rng, 0.8)
    getattr(cluster.nodes[0], harm)()
    wait_for(lambda: hubs.a.api.get(f"/backups/{points[1]}", timeout=120).status == 200, "the hub goes on")
    ended = hubs.wait_final(hubs.a, points[1])
    assert ended["status"] == "completed", ended
    hubs.equals(hubs.a, points[1], image.content)
    prove_all(hubs, cluster, points)


@pytest.mark.parametrize("at, how", one_of(itertools.product(STEPS, ["lose_two", "lose_all"])))
def test_nobody_decides(cluster, make_hub, place, at, how):
    """Two of three are lost, or all: calls are 503, and whatever was going on goes on afterwards."""
    hubs = make(cluster, make_hub, place, lease=LEASE)
    hubs.add_vm("web")

    def lose_two():
        cluster.nodes[0].kill()
        cluster.nodes[1].kill()
        last = cluster.nodes[2]
        last.wait(lambda: last.status("ready") == "OFF", "it is alone")
        answer = hubs.a.api.get("/backups")
        assert answer.status == 503 and "not ready" in answer.json["details"], answer
        last.bootstrap()    # an admin says: this one is the cluster

    def lose_all():
        for n in cluster.nodes:
            n.kill()
        assert hubs.a.api.get("/backups").status == 503
        cluster.start_again()

    point = by_hand(hubs, at, {"lose_two": lose_two, "lose_all": lose_all}[how])
    prove_all(hubs, cluster, [point])
    assert again(lambda: hubs.a.api.get("/hubs"), 200)["hubs"][0]["state"] == "alive"


@contextlib.contextmanager
def conflicts(cluster, node):
    """All that decides raises the same number as this does at another node, all the time."""
    over = threading.Event()
    done = []

    def raise_it():
        sql = "UPDATE hub_state SET value = value + 1 WHERE name = 'turn';"
        while not over.is_set():
            done.append(node._client(sql * 20, NAME).returncode)

    before = refused(cluster)
    thread = threading.Thread(target=raise_it)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert done
    print(f"{refused(cluster) - before} transactions were refused")
    assert refused(cluster) > before


def refused(cluster):
    return sum(int(n.status(name)) for n in cluster.nodes[:2] for name in ("local_cert_failures", "local_bf_aborts"))


def test_two_hubs_that_conflict(cluster, make_hub, place):
    """Side by side at two nodes, while a third one refuses what they decide: nobody's call fails, nothing is lost."""
    hubs = make(cluster, make_hub, place, n=2, lease=LEASE)
    vms = [f"vm-{n}" for n in range(share(6, 2))]
    for n, vm in enumerate(vms):
        hubs.add_vm(vm, seed=n)
    points, errors = [], []

    def back_up(n, vm):
        try:
            for _ in range(2):
                points.append(hubs.point(hubs.all[n % 2], vm)["backup_id"])
                hubs.images[vm].write(CLUSTER, bytes([n + 1]) * CLUSTER)
        except AssertionError as e:
            errors.append(e)

    with conflicts(cluster, cluster.nodes[2]):
        threads = [threading.Thread(target=back_up, args=(n, vm)) for n, vm in enumerate(vms)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for n in range(20):
            hubs.all[n % 2].api.post("/vms", {"name": f"empty-{n}", "source": {
                "type": "file", "disks": [{"path": str(hubs.images[vms[0]].path), "format": "raw"}]}}).expect(201)
            hubs.all[(n + 1) % 2].api.delete(f"/vms/empty-{n}").expect(200)
    assert not errors, errors
    prove_all(hubs, cluster, points)
    # each call that changed something is in the log of who did what, once, and the log has no gap
    noted = hubs.a.api.get("/audit?limit=1000").expect(200)["entries"]
    assert sorted(e["id"] for e in noted) == list(range(1, len(noted) + 1))
    assert sum(e["method"] == "DELETE" and "/vms/" in e["path"] for e in noted) == 20
    assert sum(e["method"] == "POST" and e["path"].endswith("/backups") for e in noted) == len(points)
    for hub in hubs.all:
        assert "audit log could not be written" not in hub.log and "silent" not in hub.log


def test_refused_again_and_again(cluster, make_hub, place):
    """Before each of 40 COMMITs another node changes the same row. After 20 the hub gave up, though a call has time."""
    node, other = cluster.nodes[0], cluster.nodes[2]
    with SqlGate(node.port) as gate:
        options = [o.replace(f":{node.port}", f":{gate.port}") for o in cluster.options()[:1]] + cluster.options()[1:]
        hubs = Hubs(make_hub, place, [options], n=1, lease=LEASE)
        hubs.add_vm("web")
        before = refused(cluster)
        gate.precede(40, lambda: other.sql("UPDATE hub_state SET value = value + 1 WHERE name = 'turn'", NAME))
        hubs.a.api.delete("/vms/web").expect(200)
        assert gate.times == 0 and refused(cluster) - before >= 40
        hubs.a.api.get("/vms/web").expect(404)
        assert "could not be written" not in hubs.a.log
        hubs.a.stop()


def test_a_hub_and_its_node_are_gone(cluster, make_hub, place):
    """The other hub takes over, through another node."""
    hubs = make(cluster, make_hub, place, n=2, lease=int(patience(4)))
    hubs.add_vm("web")
    job = hubs.half_written(hubs.a, "web")
    hubs.a.kill()
    cluster.nodes[0].kill()
    lost = hubs.wait_final(hubs.b, job.id)
    assert (lost["status"], lost["error"]) == ("failed", "hub lost")
    assert not partial_files(hubs.repository_path)
    point = hubs.point(hubs.b, "web")["backup_id"]
    hubs.a.start()      # its node is not there: the next one is
    wait_for(lambda: hubs.states(hubs.b) == {"a": "alive", "b": "alive"}, "a is heard")
    prove_all(hubs, cluster, [point])


def test_a_data_folder_that_was_copied(cluster, make_hub, place):
    """At another node, where no lock tells: the row does."""
    hubs = make(cluster, make_hub, place, lease=int(patience(4)))
    copy = make_hub(name="copy", start=False, options=[*cluster.options(first=1), f"--hub-lease={int(patience(4))}"])
    copy.data.mkdir(parents=True)
    shutil.copy(hubs.a.data / "hub-id", copy.data / "hub-id")
    with pytest.raises(HubError, match="hub-id"):
        copy.start()
    assert hubs.states(hubs.a) == {"a": "alive"}
    # one that was killed is not kept out by its own row
    hubs.a.kill()
    hubs.a.start()
    # and where the look was too short, the first one ends
    cluster.nodes[1].sql("UPDATE hubs SET started_at = '2026-01-01T00:00:00.000000Z'", NAME)
    wait_for(lambda: hubs.a.process.poll() is not None, "it ends")
    assert "another hub has entered with this one's ID" in hubs.a.log
    assert cluster.nodes[2].sql("SELECT stopped FROM hubs", NAME) == [["0"]]


def test_a_move_looks_for_hubs_at_all_nodes(cluster, make_hub, place):
    hubs = make(cluster, make_hub, place, lease=int(patience(4)))
    other = make_hub(name="other", start=False)
    other.data.mkdir(parents=True)
    command = [hubs.a.binary, "migrate-database", "--to=embedded", f"--data-dir={other.data}",
               *cluster.options(first=1)]
    said = run(command)
    assert said.returncode != 0 and "a hub uses the database" in said.stderr, said
    hubs.a.stop()
    said = run(command)
    assert said.returncode == 0, said


def run(command):
    return subprocess.run(command, capture_output=True, text=True, timeout=patience(60), check=False)


def test_what_is_read_is_not_older_than_what_another_node_confirmed(cluster, make_hub, place):
    """The second hub's node is behind for a while: the answer comes later, and is right."""
    hubs = make(cluster, make_hub, place, n=2, lease=LEASE)
    hubs.b.api.get("/vms").expect(200)
    behind = cluster.nodes[1]
    answers = []
    asking = threading.Thread(target=lambda: answers.append(hubs.b.api.get("/vms")))
    with behind.held("FLUSH TABLES WITH READ LOCK") as go:      # it takes nothing from the others
        hubs.add_vm("web")
        assert behind.sql("SELECT COUNT(*) FROM vms", NAME) == [["0"]]
        asking.start()
        behind.wait(lambda: behind.sql("SELECT id FROM information_schema.processlist "
                                       f"WHERE user = '{USER}' AND command <> 'Sleep'"), "the second hub asks it")
        assert not answers
        go()
        asking.join()
    assert [v["name"] for v in answers[0].expect(200)["vms"]] == ["web"]


def test_hosts_that_are_not_there(cluster, make_hub, place):
    """The first two are nobody's; and of none that works each one's reason is said."""
    nobody = ["--db-host=127.0.0.1:1,127.0.0.1:2"]
    found = cluster.options()
    hub = make_hub(options=[f"{nobody[0]},{found[0].split('=', 1)[1]}", *found[1:]])
    assert hub.api.get("/health").expect(200)["database"] == "mariadb"
    alone = make_hub(name="alone", start=False, options=[*nobody, *found[1:]])
    with pytest.raises(HubError) as said:
        alone.start()
    assert "127.0.0.1:1:" in str(said.value) and "127.0.0.1:2:" in str(said.value)

