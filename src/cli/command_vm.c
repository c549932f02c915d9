#include "base/num.h"
#include "cli/command.h"

#include <inttypes.h>

// ---- what a VM is read from

static bool is_uri(const char *s)
{
    return str_starts(s, "nbd") && strstr(s, "://");
}

static bool add_disk(json_t *disks, const char *image, const char *format, Err *err)
{
    json_t *disk = json_object();
    cleanup_free char *path = is_uri(image) ? mem_strdup(image, err) : cli_absolute(image, err);
    bool fine = path && (disk || err_no_memory(err)) &&
        codec_json_set_text(disk, is_uri(image) ? "uri" : "path", path, err) &&
        (!format || codec_json_set_text(disk, "format", format, err));
    if (!fine) {
        json_decref(disk);
        return false;
    }
    return codec_json_push(disks, disk, err);
}

static bool build_files(const CliValues *v, json_t *source, Err *err)
{
    json_t *disks = json_array();
    if (!codec_json_set(source, "disks", disks, err) || !codec_json_set_text(source, "type", "file", err))
        return false;
    for (size_t i = 0; i < v->file.len; i++)
        if (!add_disk(disks, v->file.items[i], v->format, err))
            return false;
    return !v->inconsistent || codec_json_set_bool(source, "inconsistent", true, err);
}

static bool set_path(json_t *object, const char *key, const char *path, Err *err)
{
    if (!path)
        return true;
    cleanup_free char *absolute = cli_absolute(path, err);
    return absolute && codec_json_set_text(object, key, absolute, err);
}

static bool build_qemu(const CliValues *v, json_t *source, Err *err)
{
    return codec_json_set_text(source, "type", "qemu", err) && set_path(source, "qmp", v->qmp, err) &&
        set_path(source, "agent", v->agent, err) && set_path(source, "scratch", v->scratch, err) &&
        (!v->freeze || codec_json_set_text(source, "freeze", v->freeze, err));
}

static bool build_vsphere(const CliValues *v, json_t *source, Err *err)
{
    return codec_json_set_text(source, "type", "vsphere", err) &&
        codec_json_set_text(source, "source", v->source, err) && codec_json_set_text(source, "vm", v->vm, err) &&
        (!v->quiesce || codec_json_set_text(source, "quiesce", v->quiesce, err)) &&
        (!v->disks_unsupported || codec_json_set_text(source, "disks_unsupported", v->disks_unsupported, err)) &&
        (!v->unallocated || codec_json_set_text(source, "unallocated", v->unallocated, err));
}

static bool check_vsphere(const CliValues *v, Err *err)
{
    if (!v->source != !v->vm)
        return err_set(err, ERR_USAGE, "--source and --vm go together");
    if (!v->source && (v->quiesce || v->disks_unsupported || v->unallocated))
        return err_set(err, ERR_USAGE, "--quiesce, --disks-unsupported and --unallocated go with --source");
    if (v->unallocated && !str_eq(v->unallocated, "read") && !str_eq(v->unallocated, "zero"))
        return err_set(err, ERR_USAGE, "--unallocated is read or zero");
    if (v->quiesce && !str_eq(v->quiesce, "auto") && !str_eq(v->quiesce, "off") && !str_eq(v->quiesce, "require"))
        return err_set(err, ERR_USAGE, "--quiesce is auto, off or require");
    if (v->disks_unsupported && !str_eq(v->disks_unsupported, "skip") && !str_eq(v->disks_unsupported, "fail"))
        return err_set(err, ERR_USAGE, "--disks-unsupported is skip or fail");
    return true;
}

static bool check_source(const CliValues *v, Err *err)
{
    if ((v->file.len > 0) + (v->qmp != NULL) + (v->source != NULL) > 1)
        return err_set(err, ERR_USAGE, "--file, --qmp and --source exclude each other: a VM has one source");
    if (!check_vsphere(v, err))
        return false;
    if (!v->qmp && (v->agent || v->freeze || v->scratch))
        return err_set(err, ERR_USAGE, "--agent, --freeze and --scratch go with --qmp");
    if (v->file.len == 0 && (v->format || v->inconsistent))
        return err_set(err, ERR_USAGE, "--format and --inconsistent go with --file");
    if (v->format && !str_eq(v->format, "raw") && !str_eq(v->format, "qcow2"))
        return err_set(err, ERR_USAGE, "--format is raw or qcow2");
    if (v->freeze && !str_eq(v->freeze, "auto") && !str_eq(v->freeze, "off") && !str_eq(v->freeze, "require"))
        return err_set(err, ERR_USAGE, "--freeze is auto, off or require");
    return true;
}

// Adds "source" and "excluded_disks" where the options say something of them.
static bool build_audit(const CliValues *v, json_t *body, Err *err)
{
    uint64_t blocks;
    Err bad = ERR_INIT;
    if (!v->audit_blocks)
        return true;
    if (str_eq(v->audit_blocks, "default"))
        return codec_json_set_text(body, "audit_blocks", NULL, err);
    if (!num_u64(v->audit_blocks, 0, AUDIT_BLOCKS_MAX, &blocks, &bad))
        return err_set(err, ERR_USAGE, "--audit-blocks is \"default\", or a number from 0 to %d", AUDIT_BLOCKS_MAX);
    return codec_json_set_u64(body, "audit_blocks", blocks, err);
}

static bool build_vm(const CliValues *v, json_t *body, Err *err)
{
    if (!check_source(v, err) || !build_audit(v, body, err))
        return false;
    if (v->file.len > 0 || v->qmp || v->source) {
        json_t *source = json_object();
        if (!codec_json_set(body, "source", source, err) ||
            !(v->qmp          ? build_qemu(v, source, err)
                  : v->source ? build_vsphere(v, source, err)
                              : build_files(v, source, err)))
            return false;
    }
    if (v->exclude.len == 0)
        return true;
    json_t *keys = json_array();
    if (!codec_json_set(body, "excluded_disks", keys, err))
        return false;
    for (size_t i = 0; i < v->exclude.len; i++)
        if (*v->exclude.items[i] && !codec_json_push(keys, json_string(v->exclude.items[i]), err))
            return false;
    return true;
}

// ---- showing

static void show_disk(const json_t *disk)
{
    const char *image = cli_text(disk, "path");
    (void)fputs("disk:           ", stdout); // main looks at the stream's error before it ends
    text_print_clean(stdout, cli_text(disk, "key"));
    (void)fputs("  ", stdout);
    text_print_clean(stdout, *image ? image : cli_text(disk, "uri"));
    if (*cli_text(disk, "format"))
        (void)printf("  (%s)", cli_text(disk, "format"));
    (void)putchar('\n');
}

static void print_vm(const json_t *vm)
{
    const json_t *source = json_object_get(vm, "source"), *last = json_object_get(vm, "last_backup");
    char time[TEXT_TIME];
    size_t i;
    json_t *item;
    text_time(cli_text(vm, "created_at"), time);
    cli_show("vm", cli_text(vm, "name"));
    cli_show("uuid", cli_text(vm, "vm_id"));
    cli_show("registered", cli_flag(vm, "registered") ? NULL : "no; --adopt carries its points on");
    cli_show("created (UTC)", time);
    cli_show("source", cli_text(source, "type"));
    cli_show("vcenter", cli_text(source, "source"));
    cli_show("vm there", cli_text(source, "path"));
    cli_show("moref", cli_text(source, "moref"));
    cli_show("quiesce", cli_text(source, "quiesce"));
    cli_show("odd disks", cli_text(source, "disks_unsupported"));
    cli_show("unallocated", cli_text(source, "unallocated"));
    cli_show("qmp", cli_text(source, "qmp"));
    cli_show("agent", cli_text(source, "agent"));
    cli_show("freeze", cli_text(source, "freeze"));
    cli_show("scratch", cli_text(source, "scratch"));
    cli_show("inconsistent", cli_flag(source, "inconsistent") ? "images in use are taken" : NULL);
    json_array_foreach(cli_list(source, "disks"), i, item) show_disk(item);
    json_array_foreach(cli_list(vm, "excluded_disks"), i, item) cli_show("left out", json_string_value(item));
    if (json_is_integer(json_object_get(vm, "audit_blocks")))
        (void)printf("%-16s%" PRIu64 " blocks\n", "audit:", cli_u64(vm, "audit_blocks"));
    (void)printf("%-16s%" PRIu64 "\n", "points:", cli_u64(vm, "points"));
    cli_show("last backup", cli_text(last, "backup_id"));
    cli_show("", cli_text(last, "status"));
}

static bool say_vm(Cli *c, const json_t *answer)
{
    if (!cli_said_json(c, answer))
        print_vm(answer);
    return true;
}

// ---- the commands

bool command_vm_add(Cli *c, Err *err)
{
    cleanup_json json_t *body = json_object(), *answer = NULL;
    if (!body)
        return err_no_memory(err);
    const CliValues *v = &c->values;
    if (v->file.len == 0 && !v->qmp && !v->source)
        return err_set(err, ERR_USAGE, "--file, --qmp or --source is needed; --help shows how");
    return build_vm(&c->values, body, err) && codec_json_set_text(body, "name", c->words[0], err) &&
        (!c->values.adopt || codec_json_set_text(body, "adopt", c->values.adopt, err)) &&
        cli_send(c, "POST", "/api/v1/vms", body, v->source != NULL, &answer, err) && say_vm(c, answer);
}

static bool fill_list(const json_t *list, Table *t, Err *err)
{
    size_t i;
    json_t *vm;
    json_array_foreach(list, i, vm)
    {
        const json_t *last = json_object_get(vm, "last_backup"), *source = json_object_get(vm, "source");
        char points[24], time[TEXT_TIME];
        (void)snprintf(points, sizeof(points), "%" PRIu64, cli_u64(vm, "points"));
        text_time(cli_text(last, "created_at"), time);
        const char *const cells[] = {cli_text(vm, "name"),
                                     cli_flag(vm, "registered") ? cli_text(source, "type") : "(removed)",
                                     points,
                                     time,
                                     *cli_text(last, "status") ? cli_text(last, "status") : NULL,
                                     cli_text(vm, "vm_id")};
        if (!table_row(t, cells, err))
            return false;
    }
    return true;
}

bool command_vm_list(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup(table_clear) Table t = {.titles = {"NAME", "SOURCE", ">POINTS", "LAST BACKUP (UTC)", "STATUS", "UUID"}};
    if (!cli_get(c, c->values.all ? "/api/v1/vms?all=true" : "/api/v1/vms", &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    if (!fill_list(cli_list(answer, "vms"), &t, err))
        return false;
    table_print(&t, stdout);
    return true;
}

bool command_vm_show(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup_free char *path = cli_path("vms", c->words[0], NULL, err);
    return path && cli_get(c, path, &answer, err) && say_vm(c, answer);
}

bool command_vm_change(Cli *c, Err *err)
{
    cleanup_json json_t *body = json_object(), *answer = NULL;
    cleanup_free char *path = cli_path("vms", c->words[0], NULL, err);
    if (!path || (!body && !err_no_memory(err)) || !build_vm(&c->values, body, err) ||
        (c->values.name && !codec_json_set_text(body, "name", c->values.name, err)))
        return false;
    if (json_object_size(body) == 0)
        return err_set(err, ERR_USAGE, "nothing to change; --help lists what can be");
    return cli_send(c, "PATCH", path, body, c->values.source != NULL, &answer, err) && say_vm(c, answer);
}

bool command_vm_remove(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup_free char *path = cli_path("vms", c->words[0], NULL, err);
    if (!path || !cli_send(c, "DELETE", path, NULL, false, &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    cli_show("removed", c->words[0]);
    (void)printf("%-16s%" PRIu64 "\n", "points kept:", cli_u64(answer, "points_kept"));
    return true;
}
