"""A real Galera cluster of the test's own: three MariaDB servers on ports of 127.0.0.1."""

import os
import re
import shutil
import signal
import subprocess

from lib.hub import free_port
from lib.mariadb import MISSING as NO_MARIADB
from lib.mariadb import NAME, PASSWORD, PATHS, USER, MariaDb

PROVIDER = "/usr/lib/galera/libgalera_smm.so"
MISSING = NO_MARIADB + [p for p in (PROVIDER,) if not os.path.exists(p)]
# A node that is gone is noticed within two seconds; see docs/internals/galera.md for what servers have by themselves
TIMES = "evs.keepalive_period=PT0.5S;evs.inactive_check_period=PT0.5S;evs.suspect_timeout=PT2S;" \
    "evs.inactive_timeout=PT5S"


class Node(MariaDb):
    """One of them: start, kill, stop, go, cut off, join again."""

    def __init__(self, folder, name):
        super().__init__(folder)
        self.name, self.group, self.ist = name, free_port(), free_port()
        self.stopped = self.isolated = False

    def join(self, nodes, first=False, position=None):
        """Starts it; the first one makes the cluster. Returns at once."""
        position = position or (self.position() if nodes else None)
        peers = ",".join(f"127.0.0.1:{n.group}" for n in nodes)
        self.more = [
            "--binlog-format=ROW", "--innodb-autoinc-lock-mode=2", "--innodb-flush-log-at-trx-commit=2",
            "--innodb-flush-method=nosync", "--wsrep-on=ON", f"--wsrep-provider={PROVIDER}",
            "--wsrep-cluster-name=test", f"--wsrep-cluster-address=gcomm://{peers}", f"--wsrep-node-name={self.name}",
            f"--wsrep-node-address=127.0.0.1:{self.group}", "--wsrep-sst-method=file", "--wsrep-slave-threads=2",
            *([f"--wsrep-start-position={position}"] if position else []),
            f"--wsrep-provider-options=gmcast.listen_addr=tcp://127.0.0.1:{self.group};"
            f"ist.recv_addr=127.0.0.1:{self.ist};ist.recv_bind=127.0.0.1:{self.ist};"
            f"gcache.size=16M;pc.recovery=FALSE;{TIMES}",
            *(["--wsrep-new-cluster"] if first else [])]
        self.stopped = self.isolated = False
        self.launch()

    def status(self, name):
        """NULL where it does not answer."""
        if self.process is None or self.stopped:
            return None
        done = self._client(f"SHOW GLOBAL STATUS LIKE 'wsrep_{name}'")
        return done.stdout.split("\t")[1].strip() if done.returncode == 0 and "\t" in done.stdout else None

    def is_ready(self, size=None):
        return self.status("ready") == "ON" and self.status("local_state_comment") == "Synced" and \
            (size is None or self.status("cluster_size") == str(size))

    def position(self):
        """How far it had come when it ended. What it lacks the others send it, where they still have it; else a script
        of ours copies everything, since the server's are of another package."""
        text = (self.data / "grastate.dat").read_text()
        saved = re.search(r"uuid: +(\S+)\nseqno: +(\d+)\n", text)    # -1: it did not end in order
        if saved:
            return ":".join(saved.groups())
        server = subprocess.Popen([shutil.which("mariadbd", path=PATHS), *self._common(), "--wsrep-recover",
                                   "--binlog-format=ROW", "--wsrep-on=ON", f"--wsrep-provider={PROVIDER}",
                                   "--wsrep-cluster-address=gcomm://", f"--port={self.port}",
                                   f"--socket={self.folder / 's'}", f"--pid-file={self.folder / 'pid'}",
                                   "--bind-address=127.0.0.1", "--innodb-buffer-pool-size=32M",
                                   "--innodb-log-file-size=8M"],
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                  text=True)
        said = []
        try:
            for line in server.stderr:
                said.append(line)
                if found := re.search(r"Recovered position: (\S+:-?\d+)", line):
                    return found[1]
        finally:
            server.kill()   # of its own it sometimes does not come to its end
            server.wait()
            server.stderr.close()
        raise AssertionError("".join(said))

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)
        self.stopped = True

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)
        self.stopped = False

    def cut_off(self, off=True):
        """From the other nodes, not from its clients: Galera's own switch for tests."""
        self.sql(f"SET GLOBAL wsrep_provider_options='gmcast.isolate={int(off)}'")
        self.isolated = off

    def bootstrap(self):
        """It is the cluster from here on, says an admin."""
        self.sql("SET GLOBAL wsrep_provider_options='pc.bootstrap=YES'")

    def kill(self):
        if self.process:
            super().kill()
        self.stopped = self.isolated = False

    def stop(self):
        if self.process and self.stopped:
            self.thaw()
        super().stop()


class Galera:
    def __init__(self, folder):
        folder.mkdir()
        self.folder = folder
        self.nodes = [Node(folder / name, name) for name in ("n1", "n2", "n3")]

    def __enter__(self):
        first = self.nodes[0]
        try:
            first.install()
            first.join([], first=True)
            first.wait_started()
            first.sql(f"CREATE DATABASE {NAME}; CREATE USER {USER}@'%' IDENTIFIED BY '{PASSWORD}'; "
                      f"GRANT ALL ON {NAME}.* TO {USER}@'%'")
            first.stop()
            for n in self.nodes[1:]:    # so that no node has to be sent all of it
                shutil.copytree(first.data, n.data)
            self.start_again()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for n in self.nodes:
            n.kill()
            (n.folder / "s").unlink(missing_ok=True)

    def wait_whole(self):
        """At once: a node that was frozen says for a moment what was."""
        self.nodes[0].wait(lambda: all(n.is_ready(len(self.nodes)) for n in self.nodes), "all are one cluster")

    def alive(self):
        return [n for n in self.nodes if n.process]

    def heal(self):
        """All three, as if nothing had been."""
        for n in self.nodes:
            if n.process and n.stopped:
                n.thaw()
        for n in self.nodes:
            if n.process and n.process.poll() is not None:
                n.process = None
            if n.process and n.isolated:
                n.cut_off(False)
        if not self.alive():
            self.start_again()
        elif not any(n.is_ready() for n in self.alive()) and len(self.alive()) < 3:
            self.alive()[0].bootstrap()
        for n in self.nodes:
            if not n.process:
                n.join(self.nodes)
        self.wait_whole()

    def start_again(self):
        """After all of them were down: the one that knows most comes first, as an admin does it."""
        positions = {n: n.position() for n in self.nodes}
        first = max(self.nodes, key=lambda n: int(positions[n].rpartition(":")[2]))
        text = (first.data / "grastate.dat").read_text()
        (first.data / "grastate.dat").write_text(text.replace("safe_to_bootstrap: 0", "safe_to_bootstrap: 1"))
        first.join(self.nodes, first=True, position=positions[first])
        first.wait_started()
        for n in self.nodes:
            if n is not first:
                n.join(self.nodes, position=positions[n])
        self.wait_whole()

    def empty(self):
        """The hubs' tables are made once: in a cluster that takes its time."""
        tables = self.nodes[0].sql(f"SELECT table_name FROM information_schema.tables WHERE table_schema = '{NAME}' "
                                   "AND table_name <> 'schema_migrations'")
        self.nodes[0].sql("SET foreign_key_checks = 0; " + "".join(f"DELETE FROM {t}; " for t, in tables), NAME)

    def options(self, first=0):
        """A hub's, beginning with that node."""
        order = self.nodes[first:] + self.nodes[:first]
        return [f"--db-host={','.join(f'127.0.0.1:{n.port}' for n in order)}", f"--db-name={NAME}",
                f"--db-user={USER}", f"--db-pass={PASSWORD}"]
