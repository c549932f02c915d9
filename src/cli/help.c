#include "cli/help.h"

#include "cli/option.h"

static const char exit_statuses[] =
    "exit status: 0 done; 1 failed; 2 wrong usage; 3 damage found; 4 done, but disks were left out;\n"
    "5 done, but change tracking was found wrong\n";

static void print_options(const Command *command)
{
    CliValues values;
    Opt opts[OPTION_MAX];
    option_collect(command, &values, opts);
    (void)puts("\noptions:");
    (void)fflush(stdout);
    opt_print_help(opts);
}

static void print_commands(const char *group)
{
    size_t n = group ? strlen(group) : 0;
    for (const Command *c = command_table; c->name; c++)
        if (!group || (strncmp(c->name, group, n) == 0 && c->name[n] == ' '))
            (void)printf("  %-12s %s\n", c->name, c->summary);
}

void help_all(void)
{
    (void)printf("usage: sendense [--hub URL] [--json] COMMAND ...\n\n"
                 "Backups of virtual machines: talks to a sendense-hub.\n\n");
    print_commands(NULL);
    (void)printf("  %-12s %s\n", "help", "this text; sendense help COMMAND for more");
    (void)printf("  %-12s %s\n", "completion", "a completion script for bash, on standard output");
    print_options(NULL);
    (void)printf("\n%s", exit_statuses);
}

void help_command(const Command *command)
{
    (void)printf("usage: sendense %s%s%s\n\n%s\n", command->name, *command->usage ? " " : "", command->usage,
                 command->summary);
    if (command->notes)
        (void)printf("\n%s\n", command->notes);
    print_options(command);
    (void)printf("\n%s", exit_statuses);
}

void help_group(const char *group)
{
    (void)printf("usage: sendense %s COMMAND ...\n\n", group);
    print_commands(group);
}

bool help_is_group(const char *word)
{
    size_t n = strlen(word);
    for (const Command *c = command_table; c->name; c++)
        if (strncmp(c->name, word, n) == 0 && c->name[n] == ' ')
            return true;
    return false;
}

static void print_option_words(const Command *command)
{
    for (size_t i = 0; command && i < COMMAND_OPTIONS && command->options[i]; i++)
        (void)printf(" --%s", command->options[i]);
    for (const Option *o = option_table; o->name; o++)
        if (o->global)
            (void)printf(" --%s", o->name);
}

// Words, options and, elsewhere, files. Names that only the hub knows are not asked for.
void help_completion(void)
{
    (void)printf("_sendense() {\n"
                 "    local word=${COMP_WORDS[COMP_CWORD]} words=\n"
                 "    case \"${COMP_WORDS[*]:1:COMP_CWORD-1} \" in\n");
    for (const Command *c = command_table; c->name; c++) {
        (void)printf("    '%s '*) words='", c->name);
        print_option_words(c);
        (void)printf("' ;;\n");
    }
    for (const Command *c = command_table; c->name; c++) {
        size_t n = strcspn(c->name, " ");
        if (c->name[n] != ' ' || (c > command_table && strncmp(c[-1].name, c->name, n + 1) == 0))
            continue;
        (void)printf("    '%.*s ') words='", (int)n, c->name);
        for (const Command *d = c; d->name && strncmp(d->name, c->name, n + 1) == 0; d++)
            (void)printf(" %s", d->name + n + 1);
        (void)printf("' ;;\n");
    }
    (void)printf("    ' ') words='help completion");
    for (const Command *c = command_table; c->name; c++)
        if (c == command_table || strncmp(c[-1].name, c->name, strcspn(c->name, " ") + 1) != 0)
            (void)printf(" %.*s", (int)strcspn(c->name, " "), c->name);
    print_option_words(NULL);
    (void)printf("' ;;\n"
                 "    esac\n"
                 "    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$word\")\n"
                 "}\n"
                 "complete -o default -F _sendense sendense\n");
}
