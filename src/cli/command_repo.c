#include "base/num.h"
#include "cli/command.h"

#include <inttypes.h>

static void print_repository(const json_t *r)
{
    char free_bytes[STR_SIZE_MAX], total[STR_SIZE_MAX], stored[STR_SIZE_MAX], cluster[STR_SIZE_MAX], time[TEXT_TIME];
    str_size(cli_u64(r, "free_bytes"), free_bytes);
    str_size(cli_u64(r, "total_bytes"), total);
    str_size(cli_u64(r, "stored_bytes"), stored);
    str_size(cli_u64(r, "cluster_size"), cluster);
    text_time(cli_text(r, "created_at"), time);
    cli_show("repository", cli_text(r, "name"));
    cli_show("number", cli_text(r, "repository_id"));
    cli_show("uuid", cli_text(r, "uuid"));
    cli_show("path", cli_text(r, "path"));
    cli_show("cluster size", cluster);
    cli_show("hash", cli_text(r, "hash_algorithm"));
    if (cli_u64(r, "compression") > 0)
        (void)printf("%-16szstd, level %" PRIu64 "\n", "compression:", cli_u64(r, "compression"));
    else
        cli_show("compression", "off");
    cli_show("created (UTC)", time);
    cli_show("available", cli_flag(r, "available") ? "yes" : "no");
    cli_show("problem", cli_text(r, "problem"));
    (void)printf("%-16s%" PRIu64 "\n", "points:", cli_u64(r, "points"));
    cli_show("stored", stored);
    (void)printf("%-16s%s of %s\n", "free:", free_bytes, total);
}

static bool build_repository(const CliValues *v, const char *name, json_t *body, Err *err)
{
    uint64_t cluster, level = 0;
    cleanup_free char *path = cli_absolute(v->path, err);
    if (!path || !codec_json_set_text(body, "name", name, err) || !codec_json_set_text(body, "path", path, err) ||
        (v->hash && !codec_json_set_text(body, "hash_algorithm", v->hash, err)))
        return false;
    if (v->compression && !str_eq(v->compression, "off") && !num_u64(v->compression, 1, 19, &level, err)) {
        err->code = ERR_USAGE;
        return err_context(err, "option --compression");
    }
    if (!codec_json_set_u64(body, "compression", level, err))
        return false;
    if (!v->cluster_size)
        return true;
    if (!num_size(v->cluster_size, 4096, 2u << 20, &cluster, err)) {
        err->code = ERR_USAGE;
        return err_context(err, "option --cluster-size");
    }
    return codec_json_set_u64(body, "cluster_size", cluster, err);
}

bool command_repo_add(Cli *c, Err *err)
{
    cleanup_json json_t *body = json_object(), *answer = NULL;
    if (!body)
        return err_no_memory(err);
    if (!cli_need(c->values.path, "path", err) || !build_repository(&c->values, c->words[0], body, err) ||
        !cli_send(c, "POST", "/api/v1/repositories", body, false, &answer, err))
        return false;
    if (!cli_said_json(c, answer))
        print_repository(answer);
    if (cli_flag(answer, "taken_in"))
        cli_note("the folder was a repository already; its points come into the catalogue by: sendense repo scan %s",
                 c->words[0]);
    return true;
}

static bool fill_list(const json_t *list, Table *t, Err *err)
{
    size_t i;
    json_t *r;
    json_array_foreach(list, i, r)
    {
        char points[24], stored[STR_SIZE_MAX], free_bytes[STR_SIZE_MAX];
        (void)snprintf(points, sizeof(points), "%" PRIu64, cli_u64(r, "points"));
        str_size(cli_u64(r, "stored_bytes"), stored);
        str_size(cli_u64(r, "free_bytes"), free_bytes);
        bool available = cli_flag(r, "available");
        const char *const cells[] = {cli_text(r, "repository_id"),
                                     cli_text(r, "name"),
                                     points,
                                     stored,
                                     available ? free_bytes : NULL,
                                     available ? "available" : "NOT AVAILABLE",
                                     cli_text(r, "path")};
        if (!table_row(t, cells, err))
            return false;
    }
    return true;
}

bool command_repo_list(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup(table_clear) Table t = {.titles = {">NUMBER", "NAME", ">POINTS", ">STORED", ">FREE", "STATE", "PATH"}};
    if (!cli_get(c, "/api/v1/repositories", &answer, err))
        return false;
    if (cli_said_json(c, answer))
        return true;
    if (!fill_list(cli_list(answer, "repositories"), &t, err))
        return false;
    table_print(&t, stdout);
    return true;
}

bool command_repo_show(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup_free char *path = cli_path("repositories", c->words[0], NULL, err);
    if (!path || !cli_get(c, path, &answer, err))
        return false;
    if (!cli_said_json(c, answer))
        print_repository(answer);
    return true;
}

static void print_words(const char *title, const json_t *list)
{
    size_t i;
    json_t *item;
    json_array_foreach(list, i, item) cli_show(title, json_string_value(item));
}

bool command_repo_scan(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup_free char *path = cli_path("repositories", c->words[0], "scan", err);
    if (!path || !cli_send(c, "POST", path, NULL, true, &answer, err))
        return false;
    const json_t *problems = cli_list(answer, "problems"), *missing = cli_list(answer, "missing");
    if (json_array_size(problems) + json_array_size(missing) > 0)
        c->exit_status = CLI_EXIT_DAMAGED;
    if (cli_said_json(c, answer))
        return true;
    (void)printf("%" PRIu64 " points added, %" PRIu64 " unchanged, %zu missing, %zu problems\n",
                 cli_u64(answer, "added"), cli_u64(answer, "unchanged"), json_array_size(missing),
                 json_array_size(problems));
    print_words("missing", missing);
    print_words("orphan", cli_list(answer, "orphans"));
    size_t i;
    json_t *p;
    json_array_foreach(problems, i, p)
    {
        cli_show("problem", cli_text(p, "path"));
        cli_show("", cli_text(p, "details"));
    }
    return true;
}

bool command_repo_remove(Cli *c, Err *err)
{
    cleanup_json json_t *answer = NULL;
    cleanup_free char *path = cli_path("repositories", c->words[0], NULL, err);
    if (!path || !cli_send(c, "DELETE", path, NULL, false, &answer, err))
        return false;
    if (!cli_said_json(c, answer)) {
        cli_show("removed", c->words[0]);
        cli_show("files stay in", cli_text(answer, "path"));
    }
    return true;
}
