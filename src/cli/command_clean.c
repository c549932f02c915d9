#include "cli/command.h"

typedef struct Found {
    json_t *items;
    size_t left, failed; // that would go; that did not
} Found;

static void note_item(Found *f, const json_t *item)
{
    const char *action = cli_text(item, "action");
    f->left += str_eq(action, "would_remove");
    f->failed += str_eq(action, "failed");
}

static bool take_items(Found *f, const json_t *answer, Err *err)
{
    size_t i;
    json_t *item;
    json_array_foreach(cli_list(answer, "items"), i, item)
    {
        note_item(f, item);
        if (!codec_json_push(f->items, json_incref(item), err))
            return false;
    }
    return true;
}

static bool ask_hub(Cli *c, Found *f, Err *err)
{
    cleanup_json json_t *body = json_object(), *answer = NULL;
    return codec_json_set_bool(body, "dry_run", !c->values.yes, err) &&
        codec_json_set_bool(body, "exports", c->values.exports, err) &&
        codec_json_set_bool(body, "interrupted", c->values.interrupted, err) &&
        codec_json_set_bool(body, "jobs", c->values.jobs, err) &&
        (c->values.older_than == 0 || codec_json_set_u64(body, "older_than_minutes", c->values.older_than, err)) &&
        cli_send(c, "POST", "/api/v1/maintenance/clean", body, true, &answer, err) && take_items(f, answer, err);
}

// A VM that the hub could not look at keeps the others from nothing.
static bool push_failure(Found *f, const char *vm, const Err *why, Err *err)
{
    json_t *item = json_object();
    bool ok = codec_json_push(f->items, item, err) && codec_json_set_text(item, "kind", "vm", err) &&
        codec_json_set_text(item, "name", vm, err) && codec_json_set_text(item, "where", NULL, err) &&
        codec_json_set_text(item, "action", "failed", err) && codec_json_set_text(item, "details", why->details, err);
    f->failed++;
    return ok;
}

static bool ask_vm(Cli *c, const char *vm, Found *f, Err *err)
{
    cleanup_json json_t *body = json_object(), *answer = NULL;
    cleanup_free char *path = cli_path("vms", vm, "clean", err);
    return path && codec_json_set_bool(body, "dry_run", !c->values.yes, err) &&
        codec_json_set_bool(body, "bitmaps", c->values.bitmaps, err) &&
        cli_send(c, "POST", path, body, true, &answer, err) && take_items(f, answer, err);
}

static bool ask_vms(Cli *c, Found *f, Err *err)
{
    cleanup_json json_t *answer = NULL;
    size_t i;
    json_t *vm;
    if (!cli_get(c, "/api/v1/vms", &answer, err))
        return false;
    json_array_foreach(cli_list(answer, "vms"), i, vm)
    {
        Err why = ERR_INIT;
        if (!ask_vm(c, cli_text(vm, "vm_id"), f, &why) && why.code != ERR_NOT_FOUND && // removed meanwhile
            !push_failure(f, cli_text(vm, "name"), &why, err))
            return false;
    }
    return true;
}

static bool check_usage(const Cli *c, Err *err)
{
    const CliValues *v = &c->values;
    if (v->bitmaps && !v->vm)
        return err_set(err, ERR_USAGE, "--bitmaps is for one VM; HINT: --vm NAME");
    if (v->vm && (v->exports || v->interrupted || v->jobs))
        return err_set(err, ERR_USAGE, "--vm looks into that VM alone; leave out --exports, --interrupted and --jobs");
    if (v->older_than != 0 && !v->exports && !v->jobs)
        return err_set(err, ERR_USAGE, "--older-than goes with --exports or --jobs");
    return true;
}

static bool print_items(const Found *f, Err *err)
{
    cleanup(table_clear) Table t = {.titles = {"WHAT", "NAME", "WHERE", "DONE", "DETAILS"}};
    size_t i;
    json_t *item;
    json_array_foreach(f->items, i, item)
    {
        const char *where = cli_text(item, "where"), *details = cli_text(item, "details");
        const char *action = cli_text(item, "action");
        const char *const cells[] = {cli_text(item, "kind"), cli_text(item, "name"), *where ? where : NULL,
                                     str_eq(action, "would_remove") ? "would go" : action, *details ? details : NULL};
        if (!table_row(&t, cells, err))
            return false;
    }
    if (json_array_size(f->items) > 0)
        table_print(&t, stdout);
    return true;
}

static bool print_all(const Cli *c, const Found *f, Err *err)
{
    if (!print_items(f, err))
        return false;
    size_t removed = 0, i;
    json_t *item;
    json_array_foreach(f->items, i, item) removed += str_eq(cli_text(item, "action"), "removed");
    if (f->left > 0)
        cli_note("nothing was touched; --yes takes away what would go");
    else if (f->failed == 0 && removed == 0)
        (void)puts("nothing is left over");
    if (f->failed > 0)
        cli_note("%zu could not be removed, or looked at", f->failed);
    if (removed > 0 && c->values.bitmaps)
        cli_note("the VM's next backup compares, or is a full: its change tracking is gone");
    return true;
}

static bool clean(Cli *c, Found *f, Err *err)
{
    bool ok = c->values.vm ? ask_vm(c, c->values.vm, f, err) : ask_hub(c, f, err) && ask_vms(c, f, err);
    if (!ok)
        return false;
    if (f->failed > 0)
        c->exit_status = CLI_EXIT_FAILED;
    cleanup_json json_t *all = json_object();
    if (!codec_json_set_bool(all, "dry_run", !c->values.yes, err) ||
        !codec_json_set(all, "items", json_incref(f->items), err))
        return false;
    return cli_said_json(c, all) || print_all(c, f, err);
}

bool command_clean(Cli *c, Err *err)
{
    Found f = {.items = json_array()};
    bool ok = f.items ? check_usage(c, err) && clean(c, &f, err) : err_no_memory(err);
    json_decref(f.items);
    return ok;
}
