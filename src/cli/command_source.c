#include "base/file.h"
#include "cli/ask.h"
#include "cli/command.h"
#include "cli/terminal.h"

#include <inttypes.h>

#define CA_MAX (64u << 10)
#define DISCOVERY_MAX (256u << 20) // 10,000 VMs are about 15 MiB

static bool add_password(const CliValues *v, json_t *body, Err *err)
{
    cleanup(secret_clear) Secret password = {0};
    return ask_secret("password", v->password_file, v->password_fd, &password, err) &&
        codec_json_set_text(body, "password", secret_reveal(&password), err);
}

// ---- whom to trust

static void show_certificate(const json_t *c)
{
    static const char *const names[] = {"subject", "issuer", "not_before", "not_after", "sha256"};
    cli_note("the certificate that %s shows:", cli_text(c, "vcenter"));
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        cli_note("    %-10s  %s", names[i], cli_text(c, names[i]));
}

static bool pin_shown(Cli *c, const char *vcenter, json_t *body, Err *err)
{
    static const char hint[] = "--thumbprint, --ca or --yes";
    cleanup_json json_t *question = json_object(), *answer = NULL;
    bool yes = c->values.yes;
    if (!question)
        return err_no_memory(err);
    if (!codec_json_set_text(question, "vcenter", vcenter, err) ||
        !cli_send(c, "POST", "/api/v1/sources/certificate", question, true, &answer, err))
        return false;
    show_certificate(answer);
    if (!yes && !terminal_confirm("trust this certificate, and this one only? (yes or no) ", hint, &yes, err))
        return false;
    return (yes || err_set(err, ERR_CANCELLED, "the certificate was not trusted; nothing was changed")) &&
        codec_json_set_text(body, "thumbprint", cli_text(answer, "sha256"), err);
}

static bool add_trust(Cli *c, const char *vcenter, json_t *body, Err *err)
{
    const CliValues *v = &c->values;
    cleanup_free char *pem = NULL;
    if (v->thumbprint && v->ca)
        return err_set(err, ERR_USAGE, "--thumbprint and --ca exclude each other");
    if ((v->thumbprint || v->ca) && v->yes)
        return err_set(err, ERR_USAGE,
                       "--yes takes whatever certificate is shown; it does not go with --thumbprint or --ca");
    if (v->thumbprint)
        return codec_json_set_text(body, "thumbprint", v->thumbprint, err);
    if (!v->ca)
        return pin_shown(c, vcenter, body, err);
    if (!file_read(v->ca, CA_MAX, &pem, NULL, err))
        return err_context(err, "option --ca");
    return codec_json_set_text(body, "ca_pem", pem, err);
}

// ---- showing

static void print_source(const json_t *s)
{
    char time[TEXT_TIME];
    text_time(cli_text(s, "created_at"), time);
    cli_show("source", cli_text(s, "name"));
    cli_show("uuid", cli_text(s, "source_id"));
    cli_show("vcenter", cli_text(s, "vcenter"));
    cli_show("user", cli_text(s, "user"));
    cli_show("thumbprint", cli_text(s, "thumbprint"));
    cli_show("trusted by", *cli_text(s, "ca_pem") ? "CA" : NULL);
    cli_show("created (UTC)", time);
    (void)printf("%-16s%" PRIu64 "\n", "VMs:", cli_u64(s, "vms"));
}

static bool say_source(Cli *c, const json_t *answer)
{
    if (!cli_said_json(c, answer))
        print_source(answer);
    return true;
}

// ---- the commands

bool command_source_add(Cli *c, Err *err)
{
    const CliValues *v = &c->values;
    cleanup_json json_t *body = json_object(), *answer = NULL;
    if (!body)
        return err_no_memory(err);
    return cli_need(v->vcenter, "vcenter", err) && cli_need(v->user, "user", err) &&
        codec_json_set_text(body, "name", c->words[0], err) && codec_json_set_text(body, "type", "vsphere", err) &&
        codec_json_set_text(body, "vcenter", v->vcenter, err) && codec_json_set_text(body, "user", v->user, err) &&
        add_trust(c, v->vcenter, body, err) && add_password(v, body, err) &&
        cli_send(c, "POST", "/api/v1/sources", body, false, &answer, err) && say_source(c, answer);
}

bool command_source_list(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup(table_clear) Table t = {.titles = {"NAME", "VCENTER", "USER", "TRUSTED BY", ">VMS"}};
    if (!cli_get(c, "/api/v1/sources", &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    size_t i;
    json_t *s;
    json_array_foreach(cli_list(answer, "sources"), i, s)
    {
        char vms[24];
        (void)snprintf(vms, sizeof(vms), "%" PRIu64, cli_u64(s, "vms"));
        const char *const cells[] = {cli_text(s, "name"), cli_text(s, "vcenter"), cli_text(s, "user"),
                                     *cli_text(s, "ca_pem") ? "CA" : "thumbprint", vms};
        if (!table_row(&t, cells, err))
            return false;
    }
    table_print(&t, stdout);
    return true;
}

bool command_source_show(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup_free char *path = cli_path("sources", c->words[0], NULL, err);
    return path && cli_get(c, path, &answer, err) && say_source(c, answer);
}

bool command_source_set(Cli *c, Err *err)
{
    const CliValues *v = &c->values;
    cleanup_json json_t *body = json_object(), *answer = NULL, *now = NULL;
    cleanup_free char *path = cli_path("sources", c->words[0], NULL, err);
    if (!path || (!body && !err_no_memory(err)))
        return false;
    bool password = v->ask_password || v->password_file || v->password_fd || v->vcenter;
    bool trust = v->pin || v->thumbprint || v->ca;
    if (v->ask_password && (v->password_file || v->password_fd))
        return err_set(err, ERR_USAGE, "--ask-password does not go with --password-file and --password-fd");
    if (v->pin && (v->thumbprint || v->ca))
        return err_set(err, ERR_USAGE, "--pin does not go with --thumbprint and --ca");
    if (v->yes && !v->pin)
        return err_set(err, ERR_USAGE, "--yes goes with --pin");
    if (!password && !trust && !v->user)
        return err_set(err, ERR_USAGE, "nothing to change; --help lists what can be");
    if (v->pin && !v->vcenter && !cli_get(c, path, &now, err))
        return false;
    return (!v->vcenter || codec_json_set_text(body, "vcenter", v->vcenter, err)) &&
        (!v->user || codec_json_set_text(body, "user", v->user, err)) &&
        (!trust || add_trust(c, v->vcenter ? v->vcenter : cli_text(now, "vcenter"), body, err)) &&
        (!password || add_password(v, body, err)) && cli_send(c, "PATCH", path, body, false, &answer, err) &&
        say_source(c, answer);
}

bool command_source_remove(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup_free char *path = cli_path("sources", c->words[0], NULL, err);
    if (!path || !cli_send(c, "DELETE", path, NULL, false, &answer, err))
        return false;
    if (!cli_said_json(c, answer))
        cli_show("removed", c->words[0]);
    return true;
}

static void print_test(const json_t *answer)
{
    size_t i;
    json_t *item;
    cli_show("source", cli_text(answer, "name"));
    cli_show("server", cli_text(answer, "about"));
    json_array_foreach(cli_list(answer, "checks"), i, item)
    {
        cli_show(cli_text(item, "check"), cli_flag(item, "ok") ? "ok" : "NOT OK");
        cli_show("", cli_text(item, "details"));
    }
    if (json_is_integer(json_object_get(answer, "vms")))
        (void)printf("%-16s%" PRIu64 "\n", "VMs seen:", cli_u64(answer, "vms"));
    json_array_foreach(cli_list(answer, "missing_privileges"), i, item) cli_show("missing", json_string_value(item));
}

bool command_source_test(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup_free char *path = cli_path("sources", c->words[0], "test", err);
    if (!path || !cli_send(c, "POST", path, NULL, true, &answer, err))
        return false;
    c->exit_status = cli_flag(answer, "ok") ? 0 : CLI_EXIT_FAILED;
    if (!cli_said_json(c, answer))
        print_test(answer);
    return true;
}

// ---- discovery

// The codes of what is in the way, each once, and their texts once for all VMs.
static bool add_codes(const json_t *vm, StrBuf *codes, json_t *texts, Err *err)
{
    size_t i;
    json_t *o;
    cleanup_json json_t *seen = json_object();
    if (!seen)
        return err_no_memory(err);
    json_array_foreach(cli_list(vm, "obstacles"), i, o)
    {
        const char *code = cli_text(o, "code");
        if (json_object_get(seen, code))
            continue;
        if (!codec_json_set_bool(seen, code, true, err) ||
            !codec_json_set_text(texts, code, cli_text(o, "text"), err) ||
            !str_addf(codes, err, "%s%s", codes->len > 0 ? ", " : "", code))
            return false;
    }
    return true;
}

static bool add_vm(Table *t, const json_t *vm, json_t *texts, Err *err)
{
    char disks[24], snapshots[24], size[STR_SIZE_MAX];
    uint64_t bytes = 0;
    size_t i;
    json_t *disk;
    StrBuf codes = STR_BUF(4096);
    const json_t *known = cli_list(vm, "registered_as");
    json_array_foreach(cli_list(vm, "disks"), i, disk) bytes += cli_u64(disk, "size");
    (void)snprintf(disks, sizeof(disks), "%zu", json_array_size(cli_list(vm, "disks")));
    (void)snprintf(snapshots, sizeof(snapshots), "%zu", json_array_size(cli_list(vm, "snapshots")));
    str_size(bytes, size);
    bool ok = add_codes(vm, &codes, texts, err);
    if (ok) {
        const char *const cells[] = {*cli_text(vm, "path") ? cli_text(vm, "path") : cli_text(vm, "name"),
                                     cli_text(vm, "moref"),
                                     cli_text(vm, "power_state"),
                                     disks,
                                     size,
                                     cli_text(vm, "cbt"),
                                     snapshots,
                                     json_string_value(json_array_get(known, 0)),
                                     codes.s};
        ok = table_row(t, cells, err);
    }
    str_clear(&codes);
    return ok;
}

bool command_discover(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL, *texts = json_object();
    cleanup_free char *path = cli_path("sources", c->words[0], "vms", err);
    cleanup(table_clear) Table t = {
        .titles = {"VM", "MOREF", "POWER", ">DISKS", ">SIZE", "CBT", ">SNAPSHOTS", "REGISTERED AS", "IN THE WAY"}};
    if (!path || (!texts && !err_no_memory(err)))
        return false;
    hub_api_set_max_answer(c->hub, DISCOVERY_MAX);
    if (!cli_send(c, "GET", path, NULL, true, &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    size_t i;
    json_t *vm, *text;
    const char *code;
    json_array_foreach(cli_list(answer, "vms"), i, vm) if (!add_vm(&t, vm, texts, err)) return false;
    table_print(&t, stdout);
    json_object_foreach(texts, code, text) cli_note("%s: %s", code, json_string_value(text));
    return true;
}
