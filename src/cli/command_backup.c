#include "cli/command.h"
#include "cli/follow.h"

static bool build(const Cli *c, json_t *body, Err *err)
{
    const CliValues *v = &c->values;
    if (v->full && v->incremental)
        return err_set(err, ERR_USAGE, "--full and --incremental exclude each other");
    if (!cli_need(v->repo, "repo", err))
        return false;
    const char *type = v->full ? "full" : v->incremental ? "incremental" : NULL;
    return codec_json_set_text(body, "vm_name", c->words[0], err) &&
        codec_json_set_text(body, "repository_id", v->repo, err) &&
        (!type || codec_json_set_text(body, "backup_type", type, err)) &&
        (!v->no_client || codec_json_set_bool(body, "start_client", false, err));
}

// What is to be run where the VM's disks can be read. The one place that shows the token.
static bool say_client(const Cli *c, const json_t *backup, Err *err)
{
    cleanup_free char *job = text_shell("MIGRATEKIT_JOB_ID", cli_text(backup, "backup_id"), err);
    cleanup_free char *url = text_shell("SHA_API_URL", c->hub_url, err);
    cleanup_free char *token = text_shell("SENDENSE_JOB_TOKEN", cli_text(backup, "job_token"), err);
    const char *pin = hub_api_thumbprint(c->hub);
    cleanup_free char *trust = text_shell("SENDENSE_HUB_THUMBPRINT", pin ? pin : "", err);
    if (!job || !url || !token || !trust)
        return false;
    (void)fprintf(stderr, "Run this where the VM's disks can be read:\n    %s %s %s%s%s sendense-backup-client\n", job,
                  url, token, pin ? " " : "", pin ? trust : "");
    return true;
}

static void say_size(const char *what, uint64_t bytes)
{
    char text[STR_SIZE_MAX];
    str_size(bytes, text);
    (void)fprintf(stderr, ", %s %s", text, what);
}

static bool is_listed(const json_t *list, const char *key)
{
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item)
    {
        if (str_eq(json_string_value(item), key))
            return true;
    }
    return false;
}

// A slip in an excluded key backs up what was to be left out.
static void say_unknown_keys(Cli *c, const json_t *backup)
{
    size_t i;
    json_t *key;
    Err gone = ERR_INIT; // the VM, removed or renamed by now: then nobody can tell
    cleanup_json json_t *vm = NULL;
    cleanup_free char *path = cli_path("vms", cli_text(backup, "vm_name"), NULL, &gone);
    if (!path || !cli_get(c, path, &vm, &gone))
        return;
    json_array_foreach(cli_list(vm, "excluded_disks"), i, key)
    {
        if (!is_listed(cli_list(backup, "left_out"), json_string_value(key)))
            cli_note("warning: no disk has the excluded key %s", json_string_value(key));
    }
}

// An audit that failed: this point is right, since its disk was compared; earlier ones may not be.
static bool say_alarm(const json_t *backup)
{
    size_t i;
    json_t *d;
    bool any = false;
    json_array_foreach(cli_list(backup, "disks"), i, d)
    {
        if (cli_u64(json_object_get(d, "audit"), "wrong_blocks") == 0)
            continue;
        cli_note("ALARM: %s: %s", cli_text(d, "disk_key"), cli_text(d, "reason_text"));
        any = true;
    }
    if (any)
        cli_note(
            "the disk was compared, and this point is right; sendense backups shows which earlier ones are suspect");
    return any;
}

// How it ended, for people and for the exit status.
static void say_end(Cli *c, const json_t *backup)
{
    const char *status = cli_text(backup, "status"), *error = cli_text(backup, "error");
    size_t i;
    json_t *key;
    if (!str_eq(status, "completed")) {
        cli_note("%s: %s", *error ? error : status, cli_text(backup, "details"));
        c->exit_status = CLI_EXIT_FAILED;
        return;
    }
    if (!c->values.quiet) {
        text_print_clean(stderr, cli_text(backup, "backup_id"));
        (void)fprintf(stderr, ": completed, %s", cli_text(backup, "backup_type"));
        say_size("moved", cli_u64(backup, "bytes_transferred"));
        say_size("stored", cli_u64(backup, "stored_bytes"));
        (void)fputc('\n', stderr);
    }
    say_unknown_keys(c, backup);
    if (cli_flag(backup, "partial"))
        c->exit_status = CLI_EXIT_PARTIAL;
    if (say_alarm(backup)) // the worse of the two
        c->exit_status = CLI_EXIT_ALARM;
    if (!cli_flag(backup, "partial"))
        return;
    cli_note("warning: the point is partial: disks were left out");
    json_array_foreach(cli_list(backup, "left_out"), i, key) cli_note("left out: %s", json_string_value(key));
}

bool command_backup(Cli *c, Err *err)
{
    cleanup_json json_t *body = json_object(), *started = NULL, *ended = NULL;
    if (!body)
        return err_no_memory(err);
    if (!build(c, body, err) || !cli_send(c, "POST", "/api/v1/backups", body, false, &started, err))
        return false;
    const char *id = cli_text(started, "backup_id");
    if (!*id)
        return err_set(err, ERR_PROTOCOL, "the hub's answer has no backup_id");
    if (c->values.no_client && !say_client(c, started, err))
        return false;
    bool fine = c->values.detach || follow_backup(c, id, &ended, err);
    if (ended)
        say_end(c, ended);
    if (fine && cli_said_json(c, ended ? ended : started))
        return true;
    if (!c->values.json)
        (void)puts(id); // main looks at the stream's error before it ends
    return fine;
}
