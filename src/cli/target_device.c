#include "cli/target.h"

#include "base/file.h"
#include "base/num.h"
#include "base/str.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#define TEXT_MAX (16u << 20)
#define NAMES_MAX 4096
#define DEVICES_MAX 1024
#define DEPTH_MAX 16
#define PROCESSES_MAX (1u << 22)

const TargetSystem target_system = {
    .mountinfo = "/proc/self/mountinfo",
    .swaps = "/proc/swaps",
    .devices = "/sys/dev/block",
    .processes = "/proc",
};

// A device with its partitions and what is made of them (LVM, RAID, dm-crypt).
typedef struct Family {
    dev_t devices[DEVICES_MAX];
    size_t len;
} Family;

// "8:16"
static bool parse_device(const char *s, dev_t *ret)
{
    char text[24];
    Err bad = ERR_INIT;
    uint64_t major_no, minor_no;
    size_t n = strcspn(s, " \n");
    if (n >= sizeof(text))
        return false;
    memcpy(text, s, n);
    text[n] = '\0';
    char *colon = strchr(text, ':');
    if (!colon)
        return false;
    *colon = '\0';
    if (!num_u64(text, 0, UINT32_MAX, &major_no, &bad) || !num_u64(colon + 1, 0, UINT32_MAX, &minor_no, &bad))
        return false;
    *ret = makedev((unsigned)major_no, (unsigned)minor_no);
    return true;
}

static bool add_family(const TargetSystem *system, dev_t device, unsigned depth, Family *f, Err *err);

// The device whose number stands in <folder>/<name>/dev, with all that is on it; if it is one, and has the file `mark`.
static bool add_relative(const TargetSystem *system, const char *folder, const char *name, const char *mark,
                         unsigned depth, Family *f, Err *err)
{
    Err none = ERR_INIT;
    dev_t device;
    cleanup_free char *text = NULL;
    cleanup_free char *path = mem_printf(err, "%s/%s/dev", folder, name);
    cleanup_free char *marked = mem_printf(err, "%s/%s/%s", folder, name, mark);
    if (!path || !marked)
        return false;
    if (!file_exists(marked))
        return true;
    if (!file_read(path, TEXT_MAX, &text, NULL, &none) || !parse_device(text, &device))
        return true; // another kind of entry
    return add_family(system, device, depth + 1, f, err);
}

static bool add_relatives(const TargetSystem *system, const char *folder, const char *mark, unsigned depth, Family *f,
                          Err *err)
{
    Err none = ERR_INIT;
    FileList list;
    if (!file_list(folder, NAMES_MAX, &list, &none))
        return none.code == ERR_NOT_FOUND || err_set(err, none.code, "%s", none.details);
    bool fine = true;
    for (size_t i = 0; fine && i < list.len; i++)
        fine = add_relative(system, folder, list.names[i], mark, depth, f, err);
    file_list_clear(&list);
    return fine;
}

static bool add_family(const TargetSystem *system, dev_t device, unsigned depth, Family *f, Err *err)
{
    for (size_t i = 0; i < f->len; i++)
        if (f->devices[i] == device)
            return true;
    if (f->len == DEVICES_MAX || depth == DEPTH_MAX)
        return err_set(err, ERR_TOO_LARGE, "too many devices rest on this one");
    f->devices[f->len++] = device;
    // Partitions are folders of the device's own, the rest are links in "holders"
    cleanup_free char *folder = mem_printf(err, "%s/%u:%u", system->devices, major(device), minor(device));
    cleanup_free char *holders = folder ? mem_printf(err, "%s/holders", folder) : NULL;
    return holders && add_relatives(system, folder, "partition", depth, f, err) &&
        add_relatives(system, holders, "dev", depth, f, err);
}

static bool is_in(const Family *f, dev_t device)
{
    for (size_t i = 0; i < f->len; i++)
        if (f->devices[i] == device)
            return true;
    return false;
}

// The kernel writes blanks in names as three octal digits.
static void unescape(char *s)
{
    char *to = s;
    for (const char *p = s; *p; to++) {
        bool octal =
            p[0] == '\\' && p[1] >= '0' && p[1] <= '3' && p[2] >= '0' && p[2] <= '7' && p[3] >= '0' && p[3] <= '7';
        *to = *p;
        if (octal)
            *to = (char)((p[1] - '0') << 6 | (p[2] - '0') << 3 | (p[3] - '0'));
        p += octal ? 4 : 1;
    }
    *to = '\0';
}

// Is the word a path of a device of the family? It is cut off at its end, and unescaped.
static bool names_device(char *word, const Family *f)
{
    struct stat st;
    word[strcspn(word, " \t")] = '\0';
    unescape(word);
    return word[0] == '/' && stat(word, &st) == 0 && S_ISBLK(st.st_mode) && is_in(f, st.st_rdev);
}

// "36 35 98:0 /root /mnt/point rw,noatime master:1 - ext3 /dev/root rw": proc(5)
static bool mount_uses(char *line, const Family *f, const char **ret_where)
{
    dev_t device;
    char *words[5];
    char *at = line;
    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        words[i] = at;
        at = strchr(at, ' ');
        if (!at)
            return false;
        at++;
    }
    char *end = strstr(at, " - ");
    char *source = end ? strchr(end + 3, ' ') : NULL;
    bool used = parse_device(words[2], &device) && is_in(f, device);
    // Some filesystems (btrfs) have a number of their own: look at what they are mounted from
    used = used || (source && names_device(source + 1, f));
    words[4][strcspn(words[4], " ")] = '\0';
    unescape(words[4]);
    *ret_where = words[4];
    return used;
}

// ---- who has it open. A virtual machine that libvirt started has device nodes of its own: their locks are not ours.

static bool is_node_of(const char *path, const Family *f)
{
    struct statx st; // without asking a server that may hang: the link leads to files of all kinds
    return statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_TYPE, &st) == 0 && S_ISBLK(st.stx_mode) &&
        is_in(f, makedev(st.stx_rdev_major, st.stx_rdev_minor));
}

// "pos:\t0\nflags:\t0100002\nmnt_id:\t21\n": proc(5)
static bool may_write(const char *fdinfo)
{
    Err gone = ERR_INIT; // closed by now
    cleanup_free char *text = NULL;
    if (!file_read(fdinfo, TEXT_MAX, &text, NULL, &gone))
        return false;
    const char *flags = strstr(text, "flags:");
    size_t n = flags ? strcspn(flags, "\n") : 0; // the last octal digit has the access mode
    return n > 0 && ((flags[n - 1] - '0') & O_ACCMODE) != O_RDONLY;
}

static bool process_writes(const TargetSystem *system, const char *pid, const Family *f, bool *ret, Err *err)
{
    Err none = ERR_INIT; // it ended, or is not ours to look at
    FileList fds;
    cleanup_free char *folder = mem_printf(err, "%s/%s/fd", system->processes, pid);
    if (!folder)
        return false;
    *ret = false;
    if (pid[strspn(pid, "0123456789")] != '\0' || !file_list(folder, PROCESSES_MAX, &fds, &none))
        return true;
    bool fine = true;
    for (size_t i = 0; fine && !*ret && i < fds.len; i++) {
        cleanup_free char *node = mem_printf(err, "%s/%s", folder, fds.names[i]);
        cleanup_free char *info = mem_printf(err, "%s/%s/fdinfo/%s", system->processes, pid, fds.names[i]);
        fine = node && info;
        *ret = fine && is_node_of(node, f) && may_write(info);
    }
    file_list_clear(&fds);
    return fine;
}

static bool no_process_writes(const TargetSystem *system, const char *path, const Family *f, Err *err)
{
    FileList pids;
    if (!file_list(system->processes, PROCESSES_MAX, &pids, err))
        return false;
    bool fine = true, writes = false;
    for (size_t i = 0; fine && i < pids.len; i++) {
        fine = process_writes(system, pids.names[i], f, &writes, err);
        if (fine && writes)
            fine = err_set(err, ERR_BUSY, "%s, or a part of it, is open for writing in process %s; stop that first",
                           path, pids.names[i]);
    }
    file_list_clear(&pids);
    return fine;
}

bool target_device_is_free(const TargetSystem *system, const char *path, dev_t device, Err *err)
{
    cleanup_free char *mounts = NULL, *swaps = NULL;
    cleanup_free Family *f = mem_calloc(1, sizeof(*f), err);
    if (!f || !add_family(system, device, 0, f, err) || !file_read(system->mountinfo, TEXT_MAX, &mounts, NULL, err) ||
        !file_read(system->swaps, TEXT_MAX, &swaps, NULL, err))
        return err_context(err, "whether %s is in use", path);
    char *rest = NULL;
    for (char *line = strtok_r(mounts, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        const char *where;
        if (mount_uses(line, f, &where))
            return err_set(err, ERR_BUSY, "%s, or a part of it, is mounted at %s; unmount it first", path, where);
    }
    for (char *line = strtok_r(swaps, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        if (names_device(line, f))
            return err_set(err, ERR_BUSY, "%s, or a part of it, is swapped to; switch that off first", path);
    return no_process_writes(system, path, f, err);
}
