// What can be left of a folder when the power goes: a log of the calls that changed it, and the states that a
// filesystem may show after each beginning of that log. What is assumed of it: docs/internals/repository.md.
#pragma once

#include "base/file.h"
#include "base/str.h"
#include "unit.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define POWER_NODES 250
#define POWER_NAMES 40 // in one folder
#define POWER_SECTOR 512u
#define POWER_BLOCK 4096u
#define POWER_NONE UINT32_MAX

typedef enum PowerKind {
    POWER_WRITE,
    POWER_SIZE, // truncated, or extended by zeros
    POWER_ADD,  // a name, of `child`
    POWER_REMOVE,
    POWER_MOVE, // within one folder
    POWER_SYNC,
    POWER_SAID, // not a call: from here on `child` is promised to be as `offset` says
} PowerKind;

typedef struct PowerOp {
    PowerKind kind;
    unsigned node; // the file, or the folder whose names change
    unsigned child;
    uint64_t offset; // or the size, or what was said
    size_t len;
    uint8_t *bytes;
    char name[120], to[120];
} PowerOp;

// A file or folder is a node: 0 is the top, the others in the order in which they came.
typedef struct PowerLog {
    char top[600];
    PowerOp *ops;
    size_t len, borrowed; // the bytes of the first `borrowed` belong to another log
    size_t begun;         // what is before was there at first, and durable
    bool folder[POWER_NODES];
    ino_t inode[POWER_NODES];
    unsigned nodes;
} PowerLog;

typedef enum PowerNames { POWER_NO_NAMES, POWER_ALL_NAMES, POWER_BEGINNING, POWER_ANY_NAMES } PowerNames;
typedef enum PowerData {
    POWER_NO_DATA,
    POWER_ALL_DATA,
    POWER_LAST,   // of all writes the last one only
    POWER_ZEROS,  // the new size, but nothing of what was written
    POWER_JUNK,   // the same, with what the disk held before where the file is new
    POWER_BLOCKS, // each block as it was at some moment since the sync, and so the size
    POWER_SECTORS,
} PowerData;

// What of the changes since each node's last sync has reached the disk.
typedef struct PowerChoice {
    PowerNames names[POWER_NODES];
    PowerData data[POWER_NODES];
} PowerChoice;

typedef struct PowerNode {
    bool there;
    uint8_t *bytes;
    uint64_t size;
    struct {
        char name[120];
        unsigned child;
    } names[POWER_NAMES];
    size_t names_len;
} PowerNode;

typedef struct PowerState {
    uint64_t hash;
    unsigned len;
    PowerNode nodes[];
} PowerState;

// ---- the log

static inline unsigned power_node_new(PowerLog *log, bool folder, ino_t inode)
{
    assert_true(log->nodes < POWER_NODES);
    log->folder[log->nodes] = folder;
    log->inode[log->nodes] = inode;
    return log->nodes++;
}

// The newest of this inode: a number that a removed file had may be given again.
static inline unsigned power_node(const PowerLog *log, ino_t inode)
{
    for (unsigned i = log->nodes; i-- > 0;)
        if (log->inode[i] == inode)
            return i;
    return POWER_NONE;
}

static inline PowerOp *power_op(PowerLog *log, PowerKind kind, unsigned node)
{
    if (log->len % 64 == 0) {
        log->ops = realloc(log->ops, (log->len + 64) * sizeof *log->ops);
        assert_non_null(log->ops);
    }
    PowerOp *op = &log->ops[log->len++];
    *op = (PowerOp){.kind = kind, .node = node};
    return op;
}

static inline void power_write(PowerLog *log, unsigned node, const void *p, size_t n, uint64_t offset)
{
    PowerOp *op = power_op(log, POWER_WRITE, node);
    op->offset = offset;
    op->len = n;
    op->bytes = malloc(n + 1);
    assert_non_null(op->bytes);
    memcpy(op->bytes, p, n);
}

static inline void power_size(PowerLog *log, unsigned node, uint64_t size)
{
    power_op(log, POWER_SIZE, node)->offset = size;
}

static inline void power_name(PowerLog *log, PowerKind kind, unsigned folder, const char *name, unsigned child)
{
    PowerOp *op = power_op(log, kind, folder);
    assert_true(strlen(name) < sizeof op->name);
    (void)snprintf(op->name, sizeof op->name, "%s", name);
    op->child = child;
}

static inline void power_move(PowerLog *log, unsigned folder, const char *name, const char *to)
{
    power_name(log, POWER_MOVE, folder, name, 0);
    PowerOp *op = &log->ops[log->len - 1];
    assert_true(strlen(to) < sizeof op->to);
    (void)snprintf(op->to, sizeof op->to, "%s", to);
}

static inline void power_clear(PowerLog *log)
{
    for (size_t i = log->borrowed; i < log->len; i++)
        free(log->ops[i].bytes);
    free(log->ops);
    *log = (PowerLog){0};
}

static inline void power_take_folder(PowerLog *log, unsigned node, const char *path, bool contents)
{
    Err err = ERR_INIT;
    FileList list;
    assert_ok(file_list(path, POWER_NAMES, &list, &err), &err);
    for (size_t i = 0; i < list.len; i++) {
        char at[1200], *bytes;
        struct stat st;
        size_t n;
        (void)snprintf(at, sizeof at, "%s/%s", path, list.names[i]);
        assert_int_equal(lstat(at, &st), 0);
        unsigned child = power_node(log, st.st_ino);
        bool known = child != POWER_NONE;
        if (!known)
            child = power_node_new(log, S_ISDIR(st.st_mode), st.st_ino);
        power_name(log, POWER_ADD, node, list.names[i], child);
        if (S_ISDIR(st.st_mode)) {
            power_take_folder(log, child, at, contents);
        } else if (!known && contents) {
            assert_ok(file_read(at, SIZE_MAX, &bytes, &n, &err), &err);
            power_write(log, child, bytes, n, 0);
            (void)power_op(log, POWER_SYNC, child);
            free(bytes);
        }
    }
    (void)power_op(log, POWER_SYNC, node);
    file_list_clear(&list);
}

// A log that begins with what the folder holds, all of it durable. Without the contents it is good for looking at what
// is done, not for building anything.
static inline PowerLog power_begin(const char *top, bool contents)
{
    PowerLog log = {0};
    struct stat st;
    assert_true(strlen(top) < sizeof log.top);
    memcpy(log.top, top, strlen(top) + 1);
    assert_int_equal(stat(top, &st), 0);
    (void)power_node_new(&log, true, st.st_ino);
    power_take_folder(&log, 0, top, contents);
    log.begun = log.len;
    return log;
}

// The first `end` calls of another log, to go on from there.
static inline PowerLog power_fork(const PowerLog *from, size_t end, const char *top)
{
    PowerLog log = *from;
    (void)snprintf(log.top, sizeof log.top, "%s", top);
    log.ops = malloc((end / 64 + 1) * 64 * sizeof *log.ops);
    assert_non_null(log.ops);
    memcpy(log.ops, from->ops, end * sizeof *log.ops);
    log.len = log.borrowed = log.begun = end;
    memset(log.inode, 0, sizeof log.inode);
    return log;
}

// ---- what is left of one file or folder

// The number of calls, of the first `end`, after which all changes of the node were durable.
static inline size_t power_synced(const PowerLog *log, unsigned node, size_t end)
{
    while (end > 0 && (log->ops[end - 1].kind != POWER_SYNC || log->ops[end - 1].node != node))
        end--;
    return end;
}

// As it was before, as it is now, or at some moment between.
static inline size_t power_moment(UnitRandom *random, size_t synced, size_t end)
{
    uint64_t which = unit_random_below(random, 3);
    return which == 0 ? synced : which == 1 ? end : synced + unit_random_below(random, end - synced + 1);
}

static inline void power_file(const PowerLog *log, unsigned node, size_t end, PowerData how, UnitRandom *random,
                              PowerNode *ret)
{
    size_t synced = power_synced(log, node, end), size_until = end, last = 0;
    uint64_t most = 0, size = 0;
    for (size_t i = 0; i < end; i++) {
        if (log->ops[i].node != node || (log->ops[i].kind != POWER_WRITE && log->ops[i].kind != POWER_SIZE))
            continue;
        most = MAX(most, log->ops[i].offset + log->ops[i].len);
        last = i;
    }
    if (last < synced) // nothing can be lost
        how = POWER_ALL_DATA;
    bool some = how == POWER_BLOCKS || how == POWER_SECTORS;
    uint64_t grain = some ? POWER_SECTOR : UINT64_C(1) << 32;
    size_t grains = most / grain + 1;
    size_t *until = malloc(grains * sizeof *until); // calls that it has seen
    ret->bytes = malloc(most + 1);
    assert_non_null(until);
    assert_non_null(ret->bytes);
    memset(ret->bytes, how == POWER_JUNK ? 0xa5 : 0, most + 1);
    if (how == POWER_NO_DATA)
        size_until = synced;
    else if (some)
        size_until = power_moment(random, synced, end);
    for (size_t g = 0; g < grains; g++) {
        if (!some)
            until[g] = how == POWER_ALL_DATA ? end : synced;
        else if (how == POWER_BLOCKS && g % (POWER_BLOCK / POWER_SECTOR) != 0)
            until[g] = until[g - 1];
        else
            until[g] = power_moment(random, synced, end);
    }
    for (size_t i = 0; i < end; i++) {
        const PowerOp *op = &log->ops[i];
        if (op->node != node || (op->kind != POWER_WRITE && op->kind != POWER_SIZE))
            continue;
        uint64_t to = op->offset + op->len;
        // Zeros come behind the old end, and, where it shrinks, behind the new one.
        uint64_t stop = op->kind == POWER_SIZE ? MAX(to, size) : to;
        for (uint64_t at = MIN(op->offset, size), next; at < stop; at = next) {
            next = MIN(align_down(at, grain) + grain, stop);
            if (until[at / grain] <= i && (how != POWER_LAST || i != last))
                continue;
            if (op->kind == POWER_SIZE) {
                memset(ret->bytes + at, 0, next - at);
                continue;
            }
            uint64_t data = MIN(MAX(at, op->offset), next); // before it is a hole that the write leaves
            memset(ret->bytes + at, 0, data - at);
            if (data < next)
                memcpy(ret->bytes + data, op->bytes + (data - op->offset), next - data);
        }
        size = op->kind == POWER_SIZE ? op->offset : MAX(size, to);
        if (i < size_until)
            ret->size = size;
    }
    free(until);
}

static inline bool power_touches(const PowerOp *op, const char *name)
{
    return name[0] != '\0' && (str_eq(op->name, name) || str_eq(op->to, name));
}

static inline size_t power_find(const PowerNode *n, const char *name)
{
    size_t i = 0;
    while (i < n->names_len && !str_eq(n->names[i].name, name))
        i++;
    return i;
}

static inline void power_apply(PowerNode *n, const PowerOp *op)
{
    size_t at = power_find(n, op->name);
    if (op->kind == POWER_ADD) {
        assert_true(at == n->names_len && at < POWER_NAMES);
        n->names_len++;
        n->names[at].child = op->child;
        (void)snprintf(n->names[at].name, sizeof n->names[at].name, "%s", op->name);
        return;
    }
    assert_true(at < n->names_len);
    unsigned child = n->names[at].child;
    n->names[at] = n->names[--n->names_len];
    if (op->kind == POWER_REMOVE)
        return;
    at = power_find(n, op->to);
    assert_true(at < POWER_NAMES);
    n->names_len += at == n->names_len;
    n->names[at].child = child;
    (void)snprintf(n->names[at].name, sizeof n->names[at].name, "%s", op->to);
}

static inline bool power_is_name_change(const PowerOp *op, unsigned node)
{
    return op->node == node && (op->kind == POWER_ADD || op->kind == POWER_REMOVE || op->kind == POWER_MOVE);
}

static inline void power_names(const PowerLog *log, unsigned node, size_t end, PowerNames how, UnitRandom *random,
                               PowerNode *ret)
{
    size_t synced = power_synced(log, node, end), lost[POWER_NODES * 4], lost_len = 0;
    size_t until = how == POWER_BEGINNING ? synced + unit_random_below(random, end - synced + 1) : end;
    if (how == POWER_NO_NAMES)
        until = synced;
    for (size_t i = 0; i < until; i++) {
        const PowerOp *op = &log->ops[i];
        if (!power_is_name_change(op, node))
            continue;
        bool keep = i < synced || how != POWER_ANY_NAMES || unit_random_below(random, 2) == 0;
        // What was done to one name is kept in its order.
        for (size_t k = 0; k < lost_len && keep; k++)
            keep = !power_touches(&log->ops[lost[k]], op->name) && !power_touches(&log->ops[lost[k]], op->to);
        if (keep) {
            power_apply(ret, op);
        } else {
            assert_true(lost_len < ARRAY_LEN(lost));
            lost[lost_len++] = i;
        }
    }
}

// ---- whole states

static inline void power_state_clear(PowerState *s)
{
    for (unsigned i = 0; i < s->len; i++)
        free(s->nodes[i].bytes);
    free(s);
}

static inline void power_reach(const PowerLog *log, size_t end, const PowerChoice *c, UnitRandom *random, PowerState *s,
                               unsigned node)
{
    PowerNode *n = &s->nodes[node];
    if (n->there)
        return;
    n->there = true;
    if (!log->folder[node]) {
        power_file(log, node, end, c ? c->data[node] : POWER_ALL_DATA, random, n);
        s->hash = XXH3_64bits_withSeed(n->bytes, n->size, s->hash + node);
        return;
    }
    power_names(log, node, end, c ? c->names[node] : POWER_ALL_NAMES, random, n);
    for (size_t i = 0; i < n->names_len; i++) {
        s->hash = XXH3_64bits_withSeed(n->names[i].name, strlen(n->names[i].name), s->hash + n->names[i].child);
        power_reach(log, end, c, random, s, n->names[i].child);
    }
}

// After the first `end` calls; c NULL: nothing is lost.
static inline PowerState *power_state(const PowerLog *log, size_t end, const PowerChoice *c, UnitRandom *random)
{
    PowerState *s = calloc(1, sizeof *s + log->nodes * sizeof s->nodes[0]);
    assert_non_null(s);
    s->len = log->nodes;
    power_reach(log, end, c, random, s, 0);
    return s;
}

// The node of a path below the top; POWER_NONE.
static inline unsigned power_at(const PowerState *s, const char *path)
{
    unsigned node = 0;
    while (node != POWER_NONE && *path) {
        char part[120];
        size_t n = strcspn(path, "/");
        (void)snprintf(part, sizeof part, "%.*s", (int)n, path);
        size_t at = power_find(&s->nodes[node], part);
        node = at < s->nodes[node].names_len ? s->nodes[node].names[at].child : POWER_NONE;
        path += n + (path[n] == '/');
    }
    return node;
}

static inline void power_build_folder(const PowerLog *log, const PowerState *s, unsigned node, const char *path,
                                      char (*first)[1200], ino_t *inodes)
{
    struct stat st;
    assert_int_equal(mkdir(path, 0700), 0);
    for (size_t i = 0; i < s->nodes[node].names_len; i++) {
        unsigned child = s->nodes[node].names[i].child;
        char at[1200];
        (void)snprintf(at, sizeof at, "%s/%s", path, s->nodes[node].names[i].name);
        if (log->folder[child]) {
            power_build_folder(log, s, child, at, first, inodes);
        } else if (first[child][0]) {
            assert_int_equal(link(first[child], at), 0);
        } else {
            int fd = open(at, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
            assert_true(fd >= 0);
            assert_int_equal(write(fd, s->nodes[child].bytes, s->nodes[child].size), s->nodes[child].size);
            assert_int_equal(close(fd), 0);
            (void)snprintf(first[child], sizeof first[child], "%s", at);
        }
        assert_int_equal(stat(at, &st), 0);
        inodes[child] = st.st_ino;
    }
    assert_int_equal(stat(path, &st), 0);
    inodes[node] = st.st_ino;
}

// The state as a real folder, made new; inodes: of the nodes, or NULL.
static inline void power_build(const PowerLog *log, const PowerState *s, const char *path, ino_t *inodes)
{
    Err err = ERR_INIT;
    ino_t unused[POWER_NODES];
    char(*first)[1200] = calloc(POWER_NODES, sizeof *first);
    assert_non_null(first);
    if (file_exists(path))
        assert_ok(file_remove_tree(path, &err), &err);
    power_build_folder(log, s, 0, path, first, inodes ? inodes : unused);
    free(first);
}

static inline void power_compare_folder(const PowerLog *log, const PowerState *s, unsigned node, const char *path)
{
    Err err = ERR_INIT;
    FileList list;
    const PowerNode *n = &s->nodes[node];
    assert_ok(file_list(path, POWER_NAMES, &list, &err), &err);
    if (list.len != n->names_len)
        fail_msg("%s holds %zu names, the log knows of %zu", path, list.len, n->names_len);
    file_list_clear(&list);
    for (size_t i = 0; i < n->names_len; i++) {
        char at[1200], *bytes;
        size_t len;
        struct stat st;
        unsigned child = n->names[i].child;
        (void)snprintf(at, sizeof at, "%s/%s", path, n->names[i].name);
        if (lstat(at, &st) != 0 || st.st_ino != log->inode[child])
            fail_msg("%s is not what the log says", at);
        if (log->folder[child]) {
            power_compare_folder(log, s, child, at);
            continue;
        }
        assert_ok(file_read(at, SIZE_MAX, &bytes, &len, &err), &err);
        if (len != s->nodes[child].size || memcmp(bytes, s->nodes[child].bytes, len) != 0)
            fail_msg("%s has other bytes than the log says", at);
        free(bytes);
    }
}

// Did a call slip past the log? With nothing lost it has to give the folder as it is, byte for byte.
static inline void power_compare(const PowerLog *log)
{
    PowerState *s = power_state(log, log->len, NULL, NULL);
    power_compare_folder(log, s, 0, log->top);
    power_state_clear(s);
}

// ---- choices

#define POWER_FIXED 7

// The v-th choice: the extremes first, then each folder alone kept or lost, then random ones.
static inline PowerChoice power_choice(const PowerLog *log, unsigned v, UnitRandom *random)
{
    static const struct {
        PowerNames names;
        PowerData data;
    } fixed[POWER_FIXED] = {
        {POWER_NO_NAMES, POWER_NO_DATA},  {POWER_ALL_NAMES, POWER_ALL_DATA}, {POWER_ALL_NAMES, POWER_NO_DATA},
        {POWER_ALL_NAMES, POWER_ZEROS},   {POWER_ALL_NAMES, POWER_JUNK},     {POWER_ALL_NAMES, POWER_LAST},
        {POWER_NO_NAMES, POWER_ALL_DATA},
    };
    PowerChoice c;
    unsigned folders = 0;
    for (unsigned i = 0; i < log->nodes; i++)
        folders += log->folder[i];
    bool any = unit_random_below(random, 2) == 0;
    for (unsigned i = 0, folder = 0; i < log->nodes; i++) {
        if (v < POWER_FIXED) {
            c.names[i] = fixed[v].names;
            c.data[i] = fixed[v].data;
        } else if (v < POWER_FIXED + 2 * folders) {
            bool is = log->folder[i] && folder == (v - POWER_FIXED) / 2, keep = v % 2 == 0;
            c.names[i] = is == keep ? POWER_ALL_NAMES : POWER_NO_NAMES;
            c.data[i] = POWER_ALL_DATA;
        } else {
            c.names[i] = any ? POWER_ANY_NAMES : POWER_BEGINNING;
            c.data[i] = (PowerData)unit_random_below(random, POWER_SECTORS + 1);
        }
        folder += log->folder[i];
    }
    return c;
}

static inline unsigned power_choices(const PowerLog *log, unsigned at_random)
{
    unsigned n = POWER_FIXED + at_random;
    for (unsigned i = 0; i < log->nodes; i++)
        n += 2 * log->folder[i];
    return n;
}
