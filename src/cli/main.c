// sendense: the command line of the system. Speaks only the hub's REST API; restores and verifies read the hub's
// exports, and so run on its machine.
#include "base/clock.h"
#include "base/proc.h"
#include "cli/credentials.h"
#include "cli/help.h"
#include "cli/option.h"
#include "cli/stop.h"

#include <errno.h>
#include <locale.h>

static void values_clear(CliValues *v)
{
    for (const Option *o = option_table; o->name; o++) {
        void *target = (char *)v + o->target;
        if (o->kind == OPT_TEXT)
            free(*(char **)target);
        else if (o->kind == OPT_LIST)
            opt_list_clear(target);
    }
}

static void cli_clear(Cli *c)
{
    values_clear(&c->values);
    hub_api_free(c->hub);
}

// The command that the words begin with; *ret_taken: how many of them are its name.
static const Command *find_command(const OptList *words, size_t *ret_taken)
{
    for (const Command *c = command_table; c->name; c++) {
        size_t n = strcspn(c->name, " ");
        bool two = c->name[n] == ' ';
        if (words->len < (two ? 2 : 1) || strlen(words->items[0]) != n || strncmp(c->name, words->items[0], n) != 0 ||
            (two && !str_eq(c->name + n + 1, words->items[1])))
            continue;
        *ret_taken = two ? 2 : 1;
        return c;
    }
    return NULL;
}

static bool unknown_command(const OptList *words, Err *err)
{
    if (words->len == 0)
        return err_set(err, ERR_USAGE, "no command; sendense --help lists them");
    if (help_is_group(words->items[0]))
        return err_set(err, ERR_USAGE, "\"%s\" needs one of its commands; sendense help %s lists them", words->items[0],
                       words->items[0]);
    return err_set(err, ERR_USAGE, "no command \"%s\"; sendense --help lists them", words->items[0]);
}

static bool print_help(const OptList *words, size_t skip, Err *err)
{
    OptList about = {.items = words->items + skip, .len = words->len - skip};
    size_t taken;
    const Command *command = find_command(&about, &taken);
    if (command)
        help_command(command);
    else if (about.len == 0 || str_eq(about.items[0], "help") || str_eq(about.items[0], "completion"))
        help_all(); // which says all that there is to say of the two
    else if (help_is_group(about.items[0]))
        help_group(about.items[0]);
    else
        return unknown_command(&about, err);
    return true;
}

static bool print_version(Cli *c, Err *err)
{
    cleanup_json json_t *o = json_object();
    if (!o)
        return err_no_memory(err);
    if (!codec_json_set_text(o, "version", SENDENSE_VERSION, err))
        return false;
    if (!cli_said_json(c, o))
        (void)puts("sendense " SENDENSE_VERSION);
    return true;
}

static bool check_words(const Command *command, const OptList *words, Err *err)
{
    if (words->len < command->min_words)
        return err_set(err, ERR_USAGE, "usage: sendense %s %s", command->name, command->usage);
    if (words->len > command->max_words)
        return err_set(err, ERR_USAGE, "unexpected argument \"%s\"; usage: sendense %s %s",
                       words->items[command->max_words], command->name, command->usage);
    for (size_t i = 0; i < words->len; i++)
        if (words->items[i][0] == '\0')
            return err_set(err, ERR_USAGE, "an empty argument; usage: sendense %s %s", command->name, command->usage);
    return true;
}

// login and logout do without what is kept: they mend it.
static bool open_hub(Cli *c, const Command *command, Err *err)
{
    const char *env = getenv("SHA_API_URL");
    c->hub_url = c->values.hub ? c->values.hub : env && *env ? env : HUB_API_URL_DEFAULT;
    cleanup(secret_clear) Secret token = {0};
    bool own = command->run == command_login || command->run == command_logout;
    cleanup(hub_trust_clear) TlsTrust trust = {0};
    return (own || (credentials_find(c->hub_url, &token, err) && credentials_trust(c->hub_url, &trust, err))) &&
        hub_api_new(c->hub_url, &token, &trust, &c->hub, err);
}

static bool run_command(Cli *c, const Command *command, int argc, char *const *argv, Err *err)
{
    Opt opts[OPTION_MAX];
    cleanup(opt_list_clear_borrowed) OptList words = {0};
    option_collect(command, &c->values, opts);
    if (!opt_parse(argc, argv, opts, false, &words, err))
        return false;
    if (c->values.version)
        return print_version(c, err);
    if (c->values.help) {
        help_command(command);
        return true;
    }
    c->words = (const char *const *)words.items;
    return check_words(command, &words, err) && open_hub(c, command, err) && command->run(c, err);
}

static bool run(Cli *c, int argc, char *const *argv, Err *err)
{
    Opt opts[OPTION_MAX];
    cleanup(opt_list_clear_borrowed) OptList words = {0};
    option_collect(NULL, &c->values, opts);
    if (!opt_parse(argc, argv, opts, true, &words, err))
        return false;
    if (c->values.version)
        return print_version(c, err);
    if (c->values.help)
        return print_help(&words, 0, err);
    if (words.len > 0 && str_eq(words.items[0], "help"))
        return print_help(&words, 1, err);
    if (words.len == 1 && str_eq(words.items[0], "completion")) {
        help_completion();
        return true;
    }
    size_t taken;
    const Command *command = find_command(&words, &taken);
    if (!command && words.len == 2 && help_is_group(words.items[0]) && str_eq(words.items[1], "--help"))
        return print_help(&words, 0, err);
    if (!command)
        return unknown_command(&words, err);
    // the last word of the name stands where the program's name does
    int first = argc - (int)words.len + (int)taken - 1;
    return run_command(c, command, argc - first, argv + first, err);
}

// With --json a failure is a JSON value too.
static void print_failure(Cli *c, const Err *err)
{
    cli_print_error(err);
    if (err->code == ERR_UNAVAILABLE && c->hub && hub_api_status(c->hub) == 0) // it did not answer
        cli_note("the hub is looked for at %s; --hub or SHA_API_URL name another", c->hub_url);
    if (err->code == ERR_PROTOCOL && str_eq(err_short(err), "certificate not trusted") && c->hub &&
        hub_api_status(c->hub) == 0 && !strstr(err->details, "--thumbprint")) // the hub's, and not by login
        cli_note("\"sendense login\" says which one it is, and keeps it by --thumbprint; or SENDENSE_HUB_CA");
    if (!c->values.json || c->said_json)
        return;
    Err ignored = ERR_INIT; // there is nothing better to say than what was said above
    cleanup_json json_t *o = json_object();
    if (o && codec_json_set_text(o, "error", err_short(err), &ignored) &&
        codec_json_set_text(o, "details", err->details, &ignored) &&
        codec_json_set_time(o, "timestamp", clock_utc_us(), &ignored))
        (void)cli_said_json(c, o);
}

int main(int argc, char **argv)
{
    cleanup(cli_clear) Cli c = {0};
    Err err = ERR_INIT;
    (void)setlocale(LC_CTYPE, "C.UTF-8"); // without it, what is not ASCII may be misaligned
    stop_catch();
    int status;
    if (proc_fill_standard_fds(&err) && run(&c, argc, argv, &err)) {
        status = c.exit_status;
    } else {
        print_failure(&c, &err);
        status = c.exit_status ? c.exit_status : err_exit(err.code); // damage that was found before counts
    }
    if (fflush(stdout) != 0 || ferror(stdout)) {
        cli_note("the result cannot be written: %s", strerror(errno));
        status = status ? status : CLI_EXIT_FAILED;
    }
    return status;
}
