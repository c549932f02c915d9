#include "source/file/layers.h"

#include "base/file.h"
#include "base/str.h"
#include "codec/qcow2.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define LAYERS_MAX 200
#define TOKEN_MAX 1000
#define TOKEN_YOUNG_S 2
#define HEADER_BYTES 104 // of a version 3 header; version 2 has 72
#define HEADER_BYTES_V2 72
#define INCOMPAT_DATA_FILE UINT64_C(4)
#define EXTENSION_END UINT32_C(0)
#define EXTENSION_FORMAT UINT32_C(0xe2792aca)
#define EXTENSIONS_BYTES_MAX 65536

// QEMU's image locks (its block/file-posix.c): a read lock on byte 100 + n says "I use permission n", one on
// 200 + n "and nobody else may".
#define LOCK_USED_BASE 100
#define LOCK_DENIED_BASE 200

static const int lock_permissions[] = {1, 3}; // writing, resizing

static bool layer_stat(FileLayer *l, Err *err)
{
    struct stat st;
    if (fstat(l->fd, &st) != 0)
        return err_errno(err, errno, "%s", l->path);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return err_set(err, ERR_INVALID, "%s is neither a file nor a block device", l->path);
    l->device = S_ISBLK(st.st_mode);
    l->dev = st.st_dev;
    l->ino = st.st_ino;
    l->mtime = st.st_mtim;
    l->ctime = st.st_ctim;
    l->size = (uint64_t)st.st_size;
    l->allocated = MIN((uint64_t)st.st_blocks * 512, l->size);
    if (l->device) {
        if (ioctl(l->fd, BLKGETSIZE64, &l->size) != 0)
            return err_errno(err, errno, "size of %s", l->path);
        l->allocated = l->size;
    }
    return true;
}

// Deny writing and resizing, then see that nobody does either. qemu-nbd on its own denies nothing on a raw image: it
// would read beside a running VM, or let one start. The locks go with the descriptor.
static bool layer_lock(const FileLayer *l, Err *err)
{
    for (size_t i = 0; i < ARRAY_LEN(lock_permissions); i++) {
        struct flock deny = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_len = 1};
        deny.l_start = LOCK_DENIED_BASE + lock_permissions[i];
        if (fcntl(l->fd, F_OFD_SETLK, &deny) != 0)
            return err_errno(err, errno, "cannot lock %s", l->path);
    }
    for (size_t i = 0; i < ARRAY_LEN(lock_permissions); i++) {
        struct flock used = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
        used.l_start = LOCK_USED_BASE + lock_permissions[i];
        if (fcntl(l->fd, F_OFD_GETLK, &used) != 0)
            return err_errno(err, errno, "cannot look at the locks of %s", l->path);
        if (used.l_type != F_UNLCK)
            return err_set(err, ERR_BUSY,
                           "%s is in use by a writer; HINT: stop it, back the VM up through its QMP socket, or say "
                           "\"inconsistent\": true",
                           l->path);
    }
    return true;
}

static bool layer_open(const char *path, bool inconsistent, FileLayer *ret, Err *err)
{
    FileLayer l = {.fd = -1};
    struct stat st;
    if (stat(path, &st) != 0)
        return err_errno(err, errno, "%s", path);
    bool exclusive = S_ISBLK(st.st_mode) && !inconsistent;
    l.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | (exclusive ? O_EXCL : 0));
    if (l.fd < 0 && errno == EBUSY)
        return err_set(err, ERR_BUSY, "%s is in use (mounted, or part of something else)", path);
    if (l.fd < 0)
        return err_errno(err, errno, "%s", path);
    l.path = mem_strdup(path, err);
    if (!l.path || !layer_stat(&l, err) || (!inconsistent && !layer_lock(&l, err))) {
        mem_cleanup_close(&l.fd);
        free(l.path);
        return false;
    }
    *ret = l;
    return true;
}

// Containers of disks that are read as raw only when that was asked for: what is in them would not be saved.
static bool refuse_container(const FileLayer *l, Err *err)
{
    static const struct {
        const char *name, *magic;
        unsigned offset;
    } known[] = {
        {"VMDK", "KDMV", 0},
        {"VMDK", "COWD", 0},
        {"VMDK", "# Disk DescriptorFile", 0},
        {"VDI", "\x7f\x10\xda\xbe", 64},
        {"VHDX", "vhdxfile", 0},
        {"VHD", "conectix", 0},
        {"QED", "QED", 0},
    };
    char head[96] = "";
    if (!file_pread(l->fd, head, MIN(l->size, sizeof(head)), 0, err))
        return false;
    for (size_t i = 0; i < ARRAY_LEN(known); i++)
        if (memcmp(head + known[i].offset, known[i].magic, strlen(known[i].magic)) == 0)
            return err_set(err, ERR_UNSUPPORTED,
                           "%s is a %s image, and raw and qcow2 are read; HINT: convert it with qemu-img, or say "
                           "--format raw where its bytes are to be saved as they are",
                           l->path, known[i].name);
    return true;
}

static bool has_magic(const FileLayer *l, bool *ret, Err *err)
{
    uint8_t magic[4];
    *ret = false;
    if (l->size < sizeof(magic))
        return true;
    if (!file_pread(l->fd, magic, sizeof(magic), 0, err))
        return err_context(err, "%s", l->path);
    *ret = qcow2_get32(magic) == QCOW2_MAGIC;
    return true;
}

// The backing format in a header's extensions; "" where there is none.
static bool read_backing_format(const FileLayer *l, uint64_t at, uint64_t end, char format[16], Err *err)
{
    format[0] = '\0';
    while (at + 8 <= end) {
        uint8_t head[8];
        if (!file_pread(l->fd, head, sizeof(head), at, err))
            return false;
        uint32_t type = qcow2_get32(head), length = qcow2_get32(head + 4);
        at += sizeof(head);
        if (type == EXTENSION_END)
            return true;
        if (length > end - at)
            return err_set(err, ERR_DAMAGED, "a header extension runs out of the header");
        if (type == EXTENSION_FORMAT && length < 16) {
            if (length > 0 && !file_pread(l->fd, format, length, at, err))
                return false;
            format[length] = '\0';
        }
        at += (length + 7) & ~UINT64_C(7);
    }
    return true;
}

// The backing file of a QCOW2 layer; name "" where there is none.
static bool read_backing(const FileLayer *l, char name[QCOW2_BACKING_MAX + 1], char format[16], Err *err)
{
    uint8_t h[HEADER_BYTES] = {0};
    name[0] = format[0] = '\0';
    if (!file_pread(l->fd, h, MIN(sizeof(h), (size_t)l->size), 0, err))
        return false;
    uint32_t version = qcow2_get32(h + 4), header_bytes = HEADER_BYTES_V2;
    if (qcow2_get32(h) != QCOW2_MAGIC || (version != 2 && version != 3))
        return err_set(err, ERR_DAMAGED, "not a QCOW2 of version 2 or 3");
    if (version == 3) {
        header_bytes = qcow2_get32(h + 100);
        if (qcow2_get64(h + 72) & INCOMPAT_DATA_FILE)
            return err_set(err, ERR_UNSUPPORTED, "a QCOW2 with an external data file");
    }
    uint64_t offset = qcow2_get64(h + 8);
    uint32_t length = qcow2_get32(h + 16);
    if (offset == 0 || length == 0)
        return true;
    if (length > QCOW2_BACKING_MAX || offset > EXTENSIONS_BYTES_MAX || header_bytes > offset)
        return err_set(err, ERR_DAMAGED, "the header's backing name is out of range");
    if (!file_pread(l->fd, name, length, offset, err))
        return false;
    name[length] = '\0';
    return read_backing_format(l, header_bytes, offset, format, err);
}

// As QEMU reads a name: up to a slash a colon ends a protocol.
static bool is_plain(const char *name)
{
    size_t n = strcspn(name, ":/");
    return name[0] && name[n] != ':' && str_has_no_controls(name);
}

static bool layers_push(FileLayers *l, const char *path, bool inconsistent, Err *err)
{
    if (l->len == LAYERS_MAX)
        return err_set(err, ERR_UNSUPPORTED, "more than %d backing files", LAYERS_MAX);
    FileLayer *grown = realloc(l->items, (l->len + 1) * sizeof(*grown));
    if (!grown)
        return err_no_memory(err);
    l->items = grown;
    if (!layer_open(path, inconsistent, &grown[l->len], err))
        return false;
    l->len++;
    return true;
}

static char *beside(const char *path, const char *name, Err *err)
{
    const char *slash = strrchr(path, '/');
    if (name[0] == '/' || !slash)
        return mem_strdup(name, err);
    return mem_printf(err, "%.*s/%s", (int)(slash - path), path, name);
}

// Everything below the newest layer, which is a QCOW2.
static bool open_backing(FileLayers *l, bool guessed, bool inconsistent, Err *err)
{
    for (;;) {
        const FileLayer *top = &l->items[l->len - 1];
        char name[QCOW2_BACKING_MAX + 1], format[16];
        if (!read_backing(top, name, format, err))
            return err_context(err, "%s", top->path);
        if (!name[0])
            return true;
        if (guessed)
            return err_set(err, ERR_INVALID,
                           "%s looks like a QCOW2 with a backing file; HINT: say \"format\": \"qcow2\" if it is one",
                           top->path);
        if (!is_plain(name))
            return err_set(err, ERR_UNSUPPORTED, "%s: its backing file \"%s\" is no plain path", top->path, name);
        if (!str_eq(format, "raw") && !str_eq(format, "qcow2"))
            return err_set(
                err, ERR_UNSUPPORTED,
                "%s: the format of its backing file is \"%s\"; HINT: raw or qcow2, see qemu-img rebase -u -F",
                top->path, format);
        cleanup_free char *path = beside(top->path, name, err);
        if (!path || !layers_push(l, path, inconsistent, err))
            return false;
        if (str_eq(format, "raw"))
            return true;
    }
}

bool file_layers_open(const char *path, FileFormat format, bool inconsistent, FileLayers *ret, Err *err)
{
    FileLayers l = {.format = format};
    bool ok = layers_push(&l, path, inconsistent, err), magic = false;
    // A device's first sector is the guest's own: what it looks like says nothing.
    bool probe = ok && format == FILE_PROBED && !l.items[0].device;
    if (probe)
        ok = has_magic(&l.items[0], &magic, err) && refuse_container(&l.items[0], err);
    if (format == FILE_PROBED)
        l.format = magic ? FILE_QCOW2 : FILE_RAW;
    if (ok && l.items[0].size == 0)
        ok = err_set(err, ERR_INVALID, "%s is empty", path);
    if (ok && l.format == FILE_QCOW2)
        ok = open_backing(&l, probe, inconsistent, err);
    if (!ok) {
        file_layers_clear(&l);
        return false;
    }
    *ret = l;
    return true;
}

bool file_layers_unchanged(const FileLayers *l, bool may_be_written, Err *err)
{
    for (size_t i = 0; i < l->len; i++) {
        const FileLayer *was = &l->items[i];
        FileLayer now = {.path = was->path, .fd = was->fd};
        struct stat st;
        if (!layer_stat(&now, err))
            return false;
        if (stat(was->path, &st) != 0 || st.st_dev != was->dev || st.st_ino != was->ino)
            return err_set(err, ERR_CONFLICT, "%s was replaced during the backup", was->path);
        if (now.size != was->size && (!may_be_written || (i == 0 && l->format == FILE_RAW)))
            return err_set(err, ERR_CONFLICT, "%s changed its size from %" PRIu64 " to %" PRIu64 " during the backup",
                           was->path, was->size, now.size);
        if (!may_be_written && !was->device &&
            (now.mtime.tv_sec != was->mtime.tv_sec || now.mtime.tv_nsec != was->mtime.tv_nsec))
            return err_set(err, ERR_CONFLICT, "%s was written to during the backup", was->path);
    }
    return true;
}

bool file_layers_token(const FileLayers *l, char **ret, Err *err)
{
    StrBuf b = STR_BUF(TOKEN_MAX);
    struct timespec now;
    Err too_long = ERR_INIT;
    (void)clock_gettime(CLOCK_REALTIME, &now); // cannot fail with this clock
    bool known = true;
    *ret = NULL;
    for (size_t i = 0; known && i < l->len; i++) {
        const FileLayer *f = &l->items[i];
        known = !f->device && now.tv_sec > f->mtime.tv_sec + TOKEN_YOUNG_S &&
            now.tv_sec > f->ctime.tv_sec + TOKEN_YOUNG_S &&
            str_addf(&b, &too_long, "%s%" PRIu64 ":%" PRIu64 ":%" PRIu64 ":%lld.%09ld:%lld.%09ld", i ? "," : "", f->dev,
                     f->ino, f->size, (long long)f->mtime.tv_sec, f->mtime.tv_nsec, (long long)f->ctime.tv_sec,
                     f->ctime.tv_nsec);
    }
    bool ok = !known || mem_replace(ret, b.s, err);
    str_clear(&b);
    return ok;
}

void file_layers_clear(FileLayers *l)
{
    for (size_t i = 0; i < l->len; i++) {
        mem_cleanup_close(&l->items[i].fd);
        free(l->items[i].path);
    }
    free(l->items);
    *l = (FileLayers){0};
}
