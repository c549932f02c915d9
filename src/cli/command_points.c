#include "cli/command.h"

#include <inttypes.h>

// ---- listing

static void remarks(const json_t *b, char *out, size_t n)
{
    const char *verified = cli_text(b, "verify_result");
    (void)snprintf(out, n, "%s%s%s%s%s", cli_flag(b, "suspect") ? "SUSPECT " : "",
                   cli_flag(b, "deleting") ? "being deleted " : "", cli_flag(b, "partial") ? "partial " : "",
                   *verified ? "verified: " : "",
                   verified); // cut where a hub says too much
}

static bool fill_list(const json_t *list, Table *t, Err *err)
{
    size_t i;
    json_t *b;
    json_array_foreach(list, i, b)
    {
        char time[TEXT_TIME], moved[STR_SIZE_MAX], stored[STR_SIZE_MAX], remark[96];
        text_time(cli_text(b, "created_at"), time);
        str_size(cli_u64(b, "bytes_transferred"), moved);
        str_size(cli_u64(b, "stored_bytes"), stored);
        remarks(b, remark, sizeof(remark));
        const char *const cells[] = {cli_text(b, "backup_id"),
                                     cli_text(b, "vm_name"),
                                     cli_text(b, "backup_type"),
                                     cli_text(b, "status"),
                                     time,
                                     moved,
                                     stored,
                                     remark};
        if (!table_row(t, cells, err))
            return false;
    }
    return true;
}

bool command_points_list(Cli *c, Err *err)
{
    const CliValues *v = &c->values;
    char limit[24];
    cleanup_json json_t *answer = NULL;
    cleanup(str_clear) StrBuf path = STR_BUF(8192);
    cleanup(table_clear)
        Table t = {.titles = {"ID", "VM", "TYPE", "STATUS", "CREATED (UTC)", ">MOVED", ">STORED", "REMARKS"}};
    (void)snprintf(limit, sizeof(limit), "%" PRIu64, v->limit); // fits: 20 digits
    if (!str_add(&path, "/api/v1/backups", err) || !cli_query(&path, "vm_name", v->vm, err) ||
        !cli_query(&path, "repository_id", v->repo, err) || !cli_query(&path, "status", v->status, err) ||
        !cli_query(&path, "limit", v->limit ? limit : NULL, err) || !cli_get(c, path.s, &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    const json_t *list = cli_list(answer, "backups");
    if (!fill_list(list, &t, err))
        return false;
    table_print(&t, stdout);
    if (json_array_size(list) < cli_u64(answer, "total"))
        cli_note("%zu of %s%" PRIu64 " are shown; --limit shows more", json_array_size(list),
                 cli_flag(answer, "more_than_total") ? "more than " : "", cli_u64(answer, "total"));
    return true;
}

// ---- one backup

static void show_size(const char *name, const json_t *b, const char *key)
{
    char text[STR_SIZE_MAX];
    if (cli_u64(b, key) == 0)
        return;
    str_size(cli_u64(b, key), text);
    cli_show(name, text);
}

static void show_time(const char *name, const json_t *b, const char *key)
{
    char text[TEXT_TIME];
    if (!*cli_text(b, key))
        return;
    text_time(cli_text(b, key), text);
    cli_show(name, text);
}

static void show_head(const json_t *b)
{
    size_t i;
    json_t *key;
    cli_show("backup", cli_text(b, "backup_id"));
    cli_show("vm", cli_text(b, "vm_name"));
    cli_show("repository", cli_text(b, "repository_id"));
    cli_show("type", cli_text(b, "backup_type"));
    cli_show("because", cli_text(b, "reason_text"));
    cli_show("status", cli_text(b, "status"));
    if (!str_eq(cli_text(b, "phase"), cli_text(b, "status")))
        cli_show("phase", cli_text(b, "phase"));
    cli_show("error", cli_text(b, "error"));
    cli_show("details", cli_text(b, "details"));
    show_time("created (UTC)", b, "created_at");
    show_time("started", b, "started_at");
    show_time("completed", b, "completed_at");
    cli_show("parent", cli_text(b, "parent_id"));
    cli_show("goes on from", cli_text(b, "resumed_from"));
    cli_show("", cli_flag(b, "resumable") ? "the next backup can go on from what it left" : NULL);
    cli_show("change id", cli_text(b, "change_id"));
    cli_show("consistency", cli_text(b, "consistency"));
    cli_show("", cli_text(b, "consistency_detail"));
    show_size("disks", b, "total_bytes");
    show_size("moved", b, "bytes_transferred");
    show_size("stored", b, "stored_bytes");
    show_time("verified", b, "verified_at");
    cli_show("", cli_text(b, "verify_result"));
    cli_show("deleting", cli_flag(b, "deleting") ? "yes: its files are being removed" : NULL);
    cli_show("suspect", cli_flag(b, "suspect") ? cli_suspect(b) : NULL);
    cli_show("partial", cli_flag(b, "partial") ? "yes: disks were left out" : NULL);
    json_array_foreach(cli_list(b, "left_out"), i, key) cli_show("left out", json_string_value(key));
    if (cli_u64(b, "dependents") > 0)
        (void)printf("%-16s%" PRIu64 "\n", "dependents:", cli_u64(b, "dependents"));
}

static bool fill_disks(const json_t *list, Table *t, Err *err)
{
    size_t i;
    json_t *d;
    json_array_foreach(list, i, d)
    {
        char no[24], size[STR_SIZE_MAX], moved[STR_SIZE_MAX], stored[STR_SIZE_MAX];
        (void)snprintf(no, sizeof(no), "%" PRIu64, cli_u64(d, "disk_no"));
        str_size(cli_u64(d, "size"), size);
        str_size(cli_u64(d, "transferred_bytes"), moved);
        str_size(cli_u64(d, "stored_bytes"), stored);
        const char *const cells[] = {no,
                                     cli_text(d, "disk_key"),
                                     size,
                                     cli_text(d, "mode"),
                                     moved,
                                     stored,
                                     cli_text(d, "change_id"),
                                     cli_text(d, "reason_text")};
        if (!table_row(t, cells, err))
            return false;
    }
    return true;
}

// What the audits prove.
static void show_audits(const json_t *list)
{
    size_t i;
    json_t *d;
    json_array_foreach(list, i, d)
    {
        const json_t *audit = json_object_get(d, "audit");
        uint64_t ppm = cli_u64(audit, "at_most_ppm"), wrong = cli_u64(audit, "wrong_blocks");
        if (!json_is_object(audit))
            continue;
        text_print_clean(stdout, cli_text(d, "disk_key"));
        (void)printf(": %" PRIu64 " of %" PRIu64 " unchanged blocks audited, ", cli_u64(audit, "checked_blocks"),
                     cli_u64(audit, "unchanged_blocks"));
        if (wrong > 0)
            (void)printf("%" PRIu64 " WRONG\n", wrong);
        else
            (void)printf("none wrong: at most %" PRIu64 ".%04" PRIu64 " %% of them are, with 95 %% confidence\n",
                         ppm / 10000, ppm % 10000);
    }
}

bool command_points_show(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup_free char *path = cli_path("backups", c->words[0], NULL, err);
    cleanup(table_clear)
        Table t = {.titles = {">DISK", "KEY", ">SIZE", "MODE", ">MOVED", ">STORED", "CHANGE ID", "BECAUSE"}};
    if (!path || !cli_get(c, path, &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    const json_t *disks = cli_list(answer, "disks");
    if (!fill_disks(disks, &t, err))
        return false;
    show_head(answer);
    if (json_array_size(disks) > 0) {
        (void)putchar('\n');
        table_print(&t, stdout);
    }
    show_audits(disks);
    return true;
}

// ---- cancelling and deleting

bool command_points_cancel(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup_free char *path = cli_path("backups", c->words[0], "cancel", err);
    if (!path || !cli_send(c, "POST", path, NULL, false, &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    cli_show("backup", c->words[0]);
    cli_show("status",
             cli_flag(answer, "cancel_requested") && !str_eq(cli_text(answer, "status"), "cancelled")
                 ? "the client was asked to stop"
                 : cli_text(answer, "status"));
    return true;
}

bool command_points_delete(Cli *c, Err *err)
{
    size_t i;
    json_t *id;
    cleanup_json json_t *answer = NULL;
    cleanup(str_clear) StrBuf path = STR_BUF(8192);
    if (!str_add(&path, "/api/v1/backups/", err) || !hub_api_segment(&path, c->words[0], err) ||
        !cli_query(&path, "with_dependents", c->values.with_dependents ? "true" : NULL, err) ||
        !cli_send(c, "DELETE", path.s, NULL, true, &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    json_array_foreach(cli_list(answer, "deleted"), i, id) cli_show("deleted", json_string_value(id));
    return true;
}
