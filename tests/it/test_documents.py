"""README and tutorial, typed as they are written, a block at once; only paths, port and sizes are the test's."""

import os
import re
import shutil
import signal
import subprocess

from lib.hub import BIN, ROOT, free_port
from lib.patience import patience

NEWEST = ("$(sendense --json backups | python3 -c "
          "'import json, sys; print(json.load(sys.stdin)[\"backups\"][0][\"backup_id\"])')")
FIRST = NEWEST.replace("[0]", "[-1]")


def blocks(path, start, end):
    """The indented blocks between two headings."""
    text = (ROOT / path).read_text().split(f"\n{start}\n", 1)[1].split(f"\n{end}\n", 1)[0]
    return ["\n".join(line[4:] for line in block.splitlines()).strip()
            for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)]


def typed(place, script, replacements):
    for old, new in replacements:
        assert old in script, old
        script = script.replace(old, str(new))
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SENDENSE_")}
    environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(place), "SENDENSE_PORT": str(port),
                    "SHA_API_URL": f"http://127.0.0.1:{port}", "SENDENSE_CREDENTIALS": str(place / "credentials.json"),
                    "SENDENSE_RUN_DIR": str(place / "run")}
    log = place / "said"
    with open(log, "wb") as out:
        shell = subprocess.Popen(["bash", "-e", "-c", f"{script}\nkill %%\nwait %%"], cwd=place, env=environment,
                                 stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        assert shell.wait(patience(120)) == 0, log.read_text()
    finally:
        if shell.poll() != 0:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    return log.read_text()


def test_readme_by_hand(place):
    """Pasted as a whole, its `login` came before the hub had made the token."""
    by_hand, without_us = blocks("README.md", "## By hand", "## How it works")
    build, by_hand = by_hand.split("\n", 1)
    assert build.startswith("make build &&")
    image = place / "web.raw"
    image.write_bytes(os.urandom(1 << 20))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", place / "old.qcow2", "1M"], check=True)
    typed(place, f"{by_hand}\n{without_us}", (
        ("--qmp /run/web.qmp --agent /run/web.agent", f"--file {image} --format raw"),  # a guest: test_source_qemu.py
        ("/images", place), ("/var/lib/sendense", place / "lib"), ("/backup/", f"{place}/backup/"),
        ("mkdir -p /backup", f"mkdir -p {place}/backup"), ("/restore/web", place / "restore" / "web"),
        ("backup-web-1795376000-incr", f"{NEWEST}-full"), ("backup-web-1795376000", NEWEST), ("ctx-web-…", "ctx-web-*"),
        ("disk.raw", place / "disk.raw")))
    assert (place / "disk.raw").read_bytes() == image.read_bytes()
    (restored,) = (place / "restore" / "web").iterdir()
    assert restored.read_bytes() == image.read_bytes()


def test_calls_to_copy(place):
    """Of the API's page all calls but one went without a token, and got 401."""
    page = (ROOT / "docs/reference/api.md").read_text()
    block = re.search(r"^    H=.*\n(?:    .*\n)*\n(?:    .*\n)+", page, re.MULTILINE)[0]
    calls = [line[4:] for line in block.splitlines()]
    (place / "backup").mkdir()
    (place / "pgtest1.qcow2").write_bytes(b"")
    said = typed(place, "\n".join(["sendense-hub --data-dir /var/lib/sendense &",
                                   "until sendense health >/dev/null 2>&1; do sleep 0.1; done", *calls]), (
        ("http://localhost:8082", "$SHA_API_URL"), ("/var/lib/sendense", place / "lib"),
        ("/backup/repository", place / "backup" / "repository"), ("/srv/vm", place)))
    for part in ('"role":"admin"', '"status":"ok"', '"cluster_size"', '"type":"file"'):
        assert part in said, said


def test_tutorial(place):
    """From nothing to a restored file, and what is left when the hub's database is lost."""
    documents = place / "documents"
    (documents / "bash").mkdir(parents=True)
    shutil.copy(ROOT / "LICENSE", documents / "bash" / "copyright")
    script = "\n".join(blocks("docs/tutorial/first-restore.md", "## 2. Start the hub", "no such heading"))
    said = typed(place, script, (
        ("/var/tmp", place), ("/usr/share/doc", documents), ("<first ID>", FIRST), ("1G", "64M"),
        ("seek=500", "seek=40")))
    sums = re.findall(r"^([0-9a-f]{64})  ", said, re.MULTILINE)
    assert len(sums) == 2 and sums[0] == sums[1], said
    assert (place / "copyright").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (place / "stock.raw").read_bytes() == (place / "restored.raw").read_bytes()
    assert "2 points added, 0 unchanged, 0 missing, 0 problems" in said
