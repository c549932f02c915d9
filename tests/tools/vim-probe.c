// Speaks to a vCenter as the sources do, and prints what it answers, one JSON value a line: the tests' way into
// wire/vim.h.
//
//   vim-probe --host HOST [--user USER] [--password-file FILE] [--thumbprint SHA256] [--ca FILE] [--timeout MS]
//             COMMAND [ARGUMENT …]
//
//   certificate | about | list | find MOREF|PATH | privileges [MOREF] | cbt VM on|off
//   snapshot VM NAME [quiesce] | disks SNAPSHOT | remove SNAPSHOT
//   areas VM SNAPSHOT KEY CHANGE_ID [START]     one answer: {"areas": [[offset, length], …], "next": …}
//   count VM SNAPSHOT KEY CHANGE_ID             all answers: {"areas": n, "bytes": n, "calls": n}
//   session                                     one session: each line of stdin is a JSON array, ["find", "vm-1"]
//
// A failure is {"error": code, "title", "details", "fault", "property", "quiescing"}; the exit status is then 1.
// SIGTERM cancels.
#include "base/clock.h"
#include "base/file.h"
#include "base/num.h"
#include "base/opt.h"
#include "base/str.h"
#include "codec/json.h"
#include "wire/vim.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#define WORDS_MAX 8
#define FILE_MAX ((size_t)1 << 20)

static atomic_bool cancelled;

typedef struct Probe {
    char *host, *user, *password_file, *thumbprint, *ca_file;
    uint64_t timeout_ms;
    Vim *vim;
} Probe;

static void say(json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_SORT_KEYS);
    (void)printf("%s\n", text ? text : "null");
    (void)fflush(stdout);
    free(text);
    json_decref(value);
}

static void say_error(const Probe *p, const Err *err)
{
    const VimFault none = {0}, *f = p->vim ? vim_fault(p->vim) : &none;
    say(json_pack("{s:s, s:s, s:s, s:s, s:s, s:b}", "error", err_name(err->code), "title", err_short(err), "details",
                  err->details, "fault", f->type, "property", f->property, "quiescing", f->quiescing));
}

static json_t *said(VimSaid s)
{
    return s == VIM_UNSAID ? json_null() : json_boolean(s == VIM_YES);
}

static json_t *disks_json(const VimDisks *disks)
{
    json_t *all = json_array();
    for (size_t i = 0; i < disks->len; i++) {
        const VimDisk *d = &disks->items[i];
        json_array_append_new(all,
                              json_pack("{s:i, s:s, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "key", d->key,
                                        "label", d->label, "capacity", (json_int_t)d->capacity, "file", d->file, "uuid",
                                        d->uuid, "change_id", d->change_id, "backing", d->backing, "disk_mode",
                                        d->disk_mode, "compatibility_mode", d->compatibility_mode, "sharing",
                                        d->sharing, "bus_sharing", d->bus_sharing));
    }
    return all;
}

static json_t *vm_json(const VimVm *vm)
{
    json_t *snapshots = json_array(), *datastores = json_array();
    for (size_t i = 0; i < vm->snapshots_len; i++) {
        const VimSnapshot *s = &vm->snapshots[i];
        json_array_append_new(snapshots,
                              json_pack("{s:s, s:s, s:s, s:s, s:i, s:b}", "moref", s->moref, "name", s->name,
                                        "description", s->description, "created", s->created, "parent", s->parent,
                                        "quiesced", s->quiesced));
    }
    for (size_t i = 0; i < vm->datastores_len; i++)
        json_array_append_new(datastores, json_string(vm->datastores[i]));
    return json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:b, s:b, s:b, s:o, s:o, s:o, s:o, s:o}",
        "moref", vm->moref, "name", vm->name, "path", vm->path, "uuid", vm->uuid, "instance_uuid", vm->instance_uuid,
        "power_state", vm->power_state, "connection_state", vm->connection_state, "vmx_file", vm->vmx_file, "host",
        vm->host, "host_name", vm->host_name, "tools_status", vm->tools_status, "current_snapshot",
        vm->current_snapshot, "hardware_version", (int)vm->hardware_version, "is_template", vm->is_template,
        "is_described", vm->is_described, "consolidation_needed", vm->consolidation_needed, "tracking",
        said(vm->tracking), "tracking_supported", said(vm->tracking_supported), "disks", disks_json(&vm->disks),
        "snapshots", snapshots, "datastores", datastores);
}

static json_t *certificate_json(const TlsCertificate *c)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:I, s:I}", "sha256", c->sha256, "sha1", c->sha1, "subject", c->subject,
                     "issuer", c->issuer, "not_before", (json_int_t)(c->not_before_us / 1000000), "not_after",
                     (json_int_t)(c->not_after_us / 1000000));
}

// ---- commands: words[0] is the command; the rest is there as the table says

static bool do_about(Probe *p, const char *const *words, Err *err)
{
    VimAbout a = vim_about(p->vim);
    (void)words, (void)err;
    say(json_pack("{s:s, s:s, s:s, s:s, s:o, s:b}", "full_name", a.full_name, "api_type", a.api_type, "api_version",
                  a.api_version, "instance_uuid", a.instance_uuid, "certificate", certificate_json(vim_shown(p->vim)),
                  "has_cookie", secret_is_set(vim_session_cookie(p->vim))));
    return true;
}

static bool on_vm(void *ctx, const VimVm *vm, Err *err)
{
    (void)err;
    json_array_append_new(ctx, vm_json(vm));
    return true;
}

static bool do_list(Probe *p, const char *const *words, Err *err)
{
    json_t *vms = json_array();
    int64_t start = clock_mono_ms();
    (void)words;
    if (!vim_list(p->vim, on_vm, vms, err)) {
        json_decref(vms);
        return false;
    }
    say(json_pack("{s:o, s:I}", "vms", vms, "ms", (json_int_t)(clock_mono_ms() - start)));
    return true;
}

static bool do_find(Probe *p, const char *const *words, Err *err)
{
    VimVm vm = {0};
    if (!vim_find(p->vim, words[1], &vm, err))
        return false;
    say(vm_json(&vm));
    vim_vm_clear(&vm);
    return true;
}

static bool do_privileges(Probe *p, const char *const *words, Err *err)
{
    const char **missing = NULL;
    json_t *names = json_array();
    if (!vim_privileges(p->vim, words[1], &missing, err)) {
        json_decref(names);
        return false;
    }
    for (const char **m = missing; *m; m++)
        json_array_append_new(names, json_string(*m));
    free(missing);
    say(json_pack("{s:o}", "missing", names));
    return true;
}

static bool do_cbt(Probe *p, const char *const *words, Err *err)
{
    if (!vim_set_cbt(p->vim, words[1], strcmp(words[2], "on") == 0, (int)p->timeout_ms, err))
        return false;
    say(json_pack("{s:s}", "cbt", words[2]));
    return true;
}

static bool do_snapshot(Probe *p, const char *const *words, Err *err)
{
    cleanup_free char *moref = NULL;
    if (!vim_snapshot_create(p->vim, words[1], words[2], "made by a test", words[3] != NULL, (int)p->timeout_ms, &moref,
                             err))
        return false;
    say(json_pack("{s:s}", "snapshot", moref));
    return true;
}

static bool do_disks(Probe *p, const char *const *words, Err *err)
{
    VimDisks disks = {0};
    if (!vim_snapshot_disks(p->vim, words[1], &disks, err))
        return false;
    say(disks_json(&disks));
    vim_disks_clear(&disks);
    return true;
}

static bool do_remove(Probe *p, const char *const *words, Err *err)
{
    if (!vim_snapshot_remove(p->vim, words[1], (int)p->timeout_ms, err))
        return false;
    say(json_pack("{s:s}", "removed", words[1]));
    return true;
}

typedef struct Areas {
    json_t *list; // NULL: only counted
    uint64_t count, bytes;
} Areas;

static bool on_area(void *ctx, uint64_t offset, uint64_t length, Err *err)
{
    Areas *a = ctx;
    (void)err;
    a->count++;
    a->bytes += length;
    if (a->list)
        json_array_append_new(a->list, json_pack("[I, I]", (json_int_t)offset, (json_int_t)length));
    return true;
}

// The disk of that key as the snapshot has it; its texts are gone.
static bool find_disk(Probe *p, const char *const *words, VimDisk *ret, Err *err)
{
    VimDisks disks = {0};
    uint64_t key = 0;
    bool found = false;
    if (!num_u64(words[3], 0, INT32_MAX, &key, err) || !vim_snapshot_disks(p->vim, words[2], &disks, err))
        return false;
    for (size_t i = 0; i < disks.len; i++) {
        if (disks.items[i].key != (int32_t)key)
            continue;
        found = true;
        *ret = (VimDisk){.key = (int32_t)key, .capacity = disks.items[i].capacity};
    }
    vim_disks_clear(&disks);
    return found || err_set(err, ERR_NOT_FOUND, "no disk %s", words[3]);
}

static bool do_areas(Probe *p, const char *const *words, Err *err)
{
    VimDisk disk;
    uint64_t start = 0, next = 0;
    if (!find_disk(p, words, &disk, err) || (words[5] && !num_u64(words[5], 0, DISK_SIZE_MAX, &start, err)))
        return false;
    Areas a = {.list = json_array()};
    if (!vim_changed_areas(p->vim, words[1], words[2], &disk, start, words[4], on_area, &a, &next, err)) {
        json_decref(a.list);
        return false;
    }
    say(json_pack("{s:o, s:I}", "areas", a.list, "next", (json_int_t)next));
    return true;
}

static bool do_count(Probe *p, const char *const *words, Err *err)
{
    VimDisk disk;
    Areas a = {0};
    json_int_t calls = 0;
    if (!find_disk(p, words, &disk, err))
        return false;
    for (uint64_t at = 0; at < disk.capacity; calls++)
        if (!vim_changed_areas(p->vim, words[1], words[2], &disk, at, words[4], on_area, &a, &at, err))
            return false;
    say(json_pack("{s:I, s:I, s:I}", "areas", (json_int_t)a.count, "bytes", (json_int_t)a.bytes, "calls", calls));
    return true;
}

static const struct {
    const char *name;
    size_t min, max; // words after the command
    bool (*run)(Probe *p, const char *const *words, Err *err);
} commands[] = {
    {"about", 0, 0, do_about},           {"list", 0, 0, do_list},     {"find", 1, 1, do_find},
    {"privileges", 0, 1, do_privileges}, {"cbt", 2, 2, do_cbt},       {"snapshot", 2, 3, do_snapshot},
    {"disks", 1, 1, do_disks},           {"remove", 1, 1, do_remove}, {"areas", 4, 5, do_areas},
    {"count", 4, 4, do_count},
};

static bool run_command(Probe *p, const char *const *words, size_t n, Err *err)
{
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        if (str_eq(commands[i].name, words[0]) && n - 1 >= commands[i].min && n - 1 <= commands[i].max)
            return commands[i].run(p, words, err);
    return err_set(err, ERR_USAGE, "no command '%s' with so many arguments", words[0]);
}

// ---- the session

static bool read_text_file(const char *path, char **ret, Err *err)
{
    char *text = NULL;
    size_t n = 0;
    if (!file_read(path, FILE_MAX, &text, &n, err))
        return false;
    *ret = text;
    return true;
}

static bool open_vim(Probe *p, Err *err)
{
    cleanup(secret_clear) Secret password = {0};
    cleanup_free char *text = NULL, *ca = NULL;
    if (p->password_file && !read_text_file(p->password_file, &text, err))
        return false;
    if ((p->ca_file && !read_text_file(p->ca_file, &ca, err)) || !secret_set(&password, text, err))
        return false;
    VimSpec spec = {.host = p->host,
                    .user = p->user ? p->user : "",
                    .password = &password,
                    .thumbprint = p->thumbprint,
                    .ca_pem = ca,
                    .timeout_ms = (int)p->timeout_ms,
                    .cancel = &cancelled};
    return vim_open(&spec, &p->vim, err);
}

// One line of stdin: whatever it answers, the session goes on.
static bool run_line(Probe *p, const char *line)
{
    const char *words[WORDS_MAX + 1] = {NULL};
    cleanup_json json_t *list = json_loads(line, 0, NULL);
    size_t n = json_array_size(list);
    Err err = ERR_INIT;
    for (size_t i = 0; i < n && i < WORDS_MAX; i++)
        words[i] = json_string_value(json_array_get(list, i));
    if (n == 0 || n > WORDS_MAX || !words[0])
        (void)err_set(&err, ERR_USAGE, "not a JSON array of words");
    else if (run_command(p, words, n, &err))
        return true;
    say_error(p, &err);
    return false;
}

static bool run_session(Probe *p)
{
    cleanup_free char *line = NULL;
    size_t cap = 0;
    bool fine = true;
    while (getline(&line, &cap, stdin) > 0)
        fine &= run_line(p, line);
    return fine;
}

static bool run(Probe *p, const OptList *args, Err *err)
{
    if (!p->host || args->len == 0 || args->len > WORDS_MAX)
        return err_set(err, ERR_USAGE, "vim-probe --host HOST … COMMAND [ARGUMENT …]");
    if (str_eq(args->items[0], "certificate")) {
        TlsCertificate c;
        if (!vim_certificate(p->host, (int)p->timeout_ms, &cancelled, &c, err))
            return false;
        say(certificate_json(&c));
        return true;
    }
    if (!open_vim(p, err))
        return false;
    if (str_eq(args->items[0], "session"))
        return run_session(p); // each line said what was wrong
    return run_command(p, (const char *const *)args->items, args->len, err);
}

static void on_term(int signum)
{
    (void)signum;
    atomic_store(&cancelled, true);
}

int main(int argc, char **argv)
{
    Probe p = {.timeout_ms = 30000};
    const Opt table[] = {{"host", OPT_TEXT, &p.host},
                         {"user", OPT_TEXT, &p.user},
                         {"password-file", OPT_TEXT, &p.password_file},
                         {"thumbprint", OPT_TEXT, &p.thumbprint},
                         {"ca", OPT_TEXT, &p.ca_file},
                         {"timeout", OPT_U64, &p.timeout_ms, .max = 3600000},
                         {NULL}};
    OptList args = {0};
    Err err = ERR_INIT;
    (void)signal(SIGTERM, on_term);
    bool fine = opt_parse(argc, argv, table, true, &args, &err) && run(&p, &args, &err);
    if (!fine && err.code != ERR_NONE)
        say_error(&p, &err);
    vim_close(p.vim);
    opt_list_clear_borrowed(&args);
    char *texts[] = {p.host, p.user, p.password_file, p.thumbprint, p.ca_file};
    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        free(texts[i]);
    return fine ? 0 : 1;
}
