#include "cli/command.h"

#include <inttypes.h>

bool command_hub_health(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    char free_bytes[STR_SIZE_MAX];
    if (!cli_get(c, "/api/v1/health", &answer, err))
        return false;
    const char *problem = cli_text(answer, "problem");
    if (*problem)
        c->exit_status = CLI_EXIT_FAILED;
    if (cli_said_json(c, answer))
        return true;
    cli_show("hub", c->hub_url);
    cli_show("status", cli_text(answer, "status"));
    if (*problem)
        cli_show("problem", problem);
    cli_show("version", cli_text(answer, "version"));
    cli_show("database", cli_text(answer, "database"));
    (void)printf("%-16s%" PRIu64 "\n", "running jobs:", cli_u64(answer, "running_jobs"));
    str_size(cli_u64(answer, "data_dir_free_bytes"), free_bytes);
    cli_show("data folder", free_bytes);
    return true;
}

static bool fill_list(const json_t *list, Table *t, Err *err)
{
    size_t i;
    json_t *e;
    json_array_foreach(list, i, e)
    {
        char time[TEXT_TIME];
        text_time(cli_text(e, "created_at"), time);
        const char *const cells[] = {cli_text(e, "export_id"), cli_text(e, "backup_id"), cli_text(e, "disk_key"),
                                     cli_text(e, "purpose"), time};
        if (!table_row(t, cells, err))
            return false;
    }
    return true;
}

bool command_hub_exports(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup(table_clear) Table t = {.titles = {"EXPORT", "BACKUP", "DISK", "PURPOSE", "SINCE (UTC)"}};
    if (!cli_get(c, "/api/v1/exports", &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    if (!fill_list(cli_list(answer, "exports"), &t, err))
        return false;
    table_print(&t, stdout);
    return true;
}

bool command_hub_export_end(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup_free char *path = cli_path("exports", c->words[0], NULL, err);
    if (!path || !cli_send(c, "DELETE", path, NULL, false, &answer, err))
        return false;
    if (!cli_said_json(c, answer))
        cli_show("ended", c->words[0]);
    return true;
}

static bool add_hub(const json_t *hub, Table *t, Err *err)
{
    char jobs[24], heard[TEXT_TIME];
    text_time(cli_text(hub, "heard_at"), heard);
    (void)snprintf(jobs, sizeof(jobs), "%lld", (long long)json_integer_value(json_object_get(hub, "jobs")));
    return table_row(t,
                     (const char *const[]){cli_text(hub, "name"), cli_text(hub, "state"), jobs,
                                           cli_text(hub, "version"), heard, cli_text(hub, "hub_id")},
                     err);
}

bool command_hub_list(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup(table_clear) Table t = {.titles = {"HUB", "STATE", "JOBS", "VERSION", "HEARD (UTC)", "ID"}};
    size_t i;
    json_t *hub;
    if (!cli_get(c, "/api/v1/hubs", &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    json_array_foreach(cli_list(answer, "hubs"), i, hub) if (!add_hub(hub, &t, err)) return false;
    table_print(&t, stdout);
    return true;
}

bool command_hub_reload(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    size_t i;
    json_t *name;
    if (!cli_send(c, "POST", "/api/v1/reload", NULL, false, &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    cli_show("reloaded", c->hub_url);
    json_array_foreach(cli_list(answer, "needs_restart"), i, name)
        cli_note("%s changes with the hub's next start", json_string_value(name));
    return true;
}

bool command_hub_backup_database(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    size_t i;
    json_t *e;
    if (!cli_send(c, "POST", "/api/v1/database/backups", NULL, true, &answer, err))
        return false;
    json_array_foreach(cli_list(answer, "backups"), i, e) if (*cli_text(e, "error")) c->exit_status = CLI_EXIT_FAILED;
    if (cli_said_json(c, answer))
        return true;
    json_array_foreach(cli_list(answer, "backups"), i, e)
    {
        if (*cli_text(e, "error"))
            cli_note("%s", cli_text(e, "error"));
        else
            cli_show("written", cli_text(e, "path"));
    }
    return true;
}

bool command_hub_database_backups(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup(table_clear) Table t = {.titles = {"REPOSITORY", "MADE (UTC)", "SIZE", "FILE"}};
    size_t i;
    json_t *e;
    if (!cli_get(c, "/api/v1/database/backups", &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    json_array_foreach(cli_list(answer, "backups"), i, e)
    {
        char time[TEXT_TIME], size[STR_SIZE_MAX];
        text_time(cli_text(e, "created_at"), time);
        str_size(cli_u64(e, "bytes"), size);
        const char *const cells[] = {cli_text(e, "repository"), time, size, cli_text(e, "path")};
        if (!table_row(&t, cells, err))
            return false;
    }
    table_print(&t, stdout);
    if (*cli_text(answer, "problem"))
        cli_note("%s", cli_text(answer, "problem"));
    return true;
}
