#include "hub/restore_database.h"

#include "base/opt.h"
#include "base/proc.h"
#include "base/str.h"
#include "hub/settings.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>

typedef struct Asked {
    char *from;
    OptList scan;
    bool force, help;
} Asked;

static void fill_table(Asked *a, Opt table[5])
{
    const Opt all[] = {
        {"from", OPT_TEXT, &a->from, 0, 0, "PATH", "a backup of the database, the folder of it, or a repository"},
        {"scan", OPT_LIST, &a->scan, 0, 0, "REPOSITORY",
         "a repository that is to be taken in where it is now; without --from: rebuild from it alone"},
        {"force", OPT_FLAG, &a->force, 0, 0, NULL, "also over a database that is not empty: it is kept aside"},
        {"help", OPT_FLAG, &a->help, 0, 0, NULL, "this text"},
        {NULL, OPT_FLAG, NULL, 0, 0, NULL, NULL},
    };
    memcpy(table, all, sizeof(all));
}

static void print_help(void)
{
    Asked none = {0};
    Opt table[5];
    fill_table(&none, table);
    (void)printf(
        "usage: sendense-hub restore-database --data-dir DIR (--from PATH | --scan REPOSITORY) [--force] "
        "[the hub's options]\n\n"
        "Makes the hub's database of a backup of it. The hub must not run. It takes the options, the files and\n"
        "the environment that the hub takes (--db-host for MariaDB).\n\n");
    (void)fflush(stdout);
    opt_print_help(table);
}

// Our own options out of the hub's; ours[0] and rest[0] are set.
static void split(int argc, char *const *argv, const Opt *table, char **ours, int *n, char **rest, int *m)
{
    for (int i = 1; i < argc; i++) {
        char name[64];
        const char *at = argv[i] + strspn(argv[i], "-");
        size_t len = strcspn(at, "=");
        (void)snprintf(name, sizeof(name), "%.*s", (int)MIN(len, sizeof(name) - 1), at);
        const Opt *o = argv[i][0] == '-' ? opt_find(table, name) : NULL;
        if (!o) {
            rest[(*m)++] = argv[i];
            continue;
        }
        ours[(*n)++] = argv[i];
        if (o->kind != OPT_FLAG && at[len] != '=' && i + 1 < argc)
            ours[(*n)++] = argv[++i];
    }
}

static bool parse(int argc, char *const *argv, Asked *asked, Settings *settings, Err *err)
{
    Opt table[5];
    OptList words = {0};
    fill_table(asked, table);
    cleanup_free char **lists = mem_calloc(2 * ((size_t)argc + 1), sizeof(*lists), err);
    if (!lists)
        return false;
    char **ours = lists, **rest = lists + argc + 1;
    int n = 1, m = 1;
    ours[0] = rest[0] = argv[0];
    split(argc, argv, table, ours, &n, rest, &m);
    if (!opt_parse(n, ours, table, false, &words, err))
        return false;
    opt_list_clear_borrowed(&words);
    return asked->help || settings_load(m, rest, settings, err);
}

static void say(const char *message)
{
    (void)printf("%s\n", message);
    (void)fflush(stdout);
}

static bool run(const Asked *asked, const Settings *o, Err *err)
{
    cleanup(secret_clear) Secret password = {0};
    StoreMariadb mariadb = {0};
    if (!settings_check_owner(settings_data_dir(o), err) || !settings_database_password(o, &password, err) ||
        (o->db_host && !settings_mariadb(o, &password, &mariadb, err)))
        return false;
    (void)signal(SIGPIPE, SIG_IGN);
    (void)signal(SIGCHLD, SIG_DFL);
    HubConfig config = {.mariadb = o->db_host ? &mariadb : NULL,
                        .data_dir = settings_data_dir(o),
                        .key_file = o->key_file,
                        .run_dir = o->run_dir,
                        .limits = settings_limits(o),
                        .auth = o->auth,
                        .new_admin = o->new_admin_token};
    config.limits.dump_keep = 0; // the hub's own time for it
    return hub_database_restore(&config,
                                &(HubRestore){.from = asked->from,
                                              .repositories = asked->scan.items,
                                              .repositories_len = asked->scan.len,
                                              .force = asked->force,
                                              .say = say},
                                err);
}

int restore_database(int argc, char *const *argv)
{
    Err err = ERR_INIT;
    Asked asked = {0};
    Settings settings = {0};
    bool ok = proc_fill_standard_fds(&err) && parse(argc, argv, &asked, &settings, &err);
    if (ok && asked.help)
        print_help();
    else
        ok = ok && run(&asked, &settings, &err);
    free(asked.from);
    opt_list_clear(&asked.scan);
    settings_clear(&settings);
    if (!ok)
        (void)fprintf(stderr, "sendense-hub restore-database: %s: %s\n", err_short(&err), err.details);
    return ok ? 0 : err_exit(err.code);
}
