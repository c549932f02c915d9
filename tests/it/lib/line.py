"""The plainest History: a VM whose disks are raw or qcow2 files that the test changes, in the repository "main"."""

from lib import images
from lib.cli import Cli
from lib.history import History
from lib.world import World


class Line(History):
    """contents: bytes of each disk (a raw file), or (format, bytes)."""

    def __init__(self, hub, folder, contents, vm_name="pgtest1", register=True):
        super().__init__(hub, Cli(hub.url, cwd=folder), folder, vm_name)
        self.world = World(hub, folder)
        self.images = []
        for n, content in enumerate(contents):
            fmt, content = content if isinstance(content, tuple) else ("raw", content)
            self.images.append(images.Image(folder / f"vm-{n}.{fmt}", fmt, content))
        if register:
            self.add_repository("main")
            self.cli.ok("vm", "add", vm_name, *(a for i in self.images for a in ("--file", i.path)))

    def references_now(self):
        return {f"disk-{n}": self.references.of(bytes(i.content)) for n, i in enumerate(self.images)}

    def point(self, kind=None, repository="main"):
        """A backup of what the disks hold now; its record as the API shows it."""
        return self.backup(repository, self.references_now(), kind)

    def modes(self, backup):
        return [(d["mode"], d["reason"]) for d in backup["disks"]]
