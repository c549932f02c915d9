#include "cli/option.h"

#define AT(member) .target = offsetof(CliValues, member)

const Option option_table[] = {
    {"hub", OPT_TEXT, AT(hub), .global = true, .value = "URL",
     .help = "the hub; else SHA_API_URL, else " HUB_API_URL_DEFAULT},
    {"json", OPT_FLAG, AT(json), .global = true, .help = "one JSON value on standard output"},
    {"quiet", OPT_FLAG, AT(quiet), .global = true, .help = "no progress"},
    {"help", OPT_FLAG, AT(help), .global = true, .help = "this text"},
    {"version", OPT_FLAG, AT(version), .global = true, .help = "the version"},
    {"path", OPT_TEXT, AT(path), .value = "DIR", .help = "folder of the repository, on the hub"},
    {"compression", OPT_TEXT, AT(compression), .value = "LEVEL",
     .help = "zstd level of new images, 1 to 19, or off (off)"},
    {"cluster-size", OPT_TEXT, AT(cluster_size), .value = "N", .help = "of the images, 4K to 2M (64K)"},
    {"hash", OPT_TEXT, AT(hash), .value = "ALG", .help = "xxh3-128 (the default) or sha256"},
    {"file", OPT_LIST, AT(file), .value = "IMAGE", .help = "a disk: image file, device or NBD URI; repeat it for more"},
    {"format", OPT_TEXT, AT(format), .value = "FORMAT", .help = "raw or qcow2"},
    {"inconsistent", OPT_FLAG, AT(inconsistent), .help = "take images that somebody writes to; the points say so"},
    {"qmp", OPT_TEXT, AT(qmp), .value = "SOCKET", .help = "QMP socket of a running QEMU"},
    {"agent", OPT_TEXT, AT(agent), .value = "SOCKET", .help = "socket of its guest agent"},
    {"freeze", OPT_TEXT, AT(freeze), .value = "HOW", .help = "the guest's filesystems: auto, off or require"},
    {"scratch", OPT_TEXT, AT(scratch), .value = "DIR", .help = "folder for what the guest overwrites meanwhile"},
    {"vcenter", OPT_TEXT, AT(vcenter), .value = "HOST", .help = "the vCenter: host or host:port"},
    {"user", OPT_TEXT, AT(user), .value = "USER", .help = "who logs in there"},
    {"password-file", OPT_TEXT, AT(password_file), .value = "PATH",
     .help = "file that holds the password, in one line"},
    {"password-fd", OPT_TEXT, AT(password_fd), .value = "N", .help = "descriptor to read the password from"},
    {"ask-password", OPT_FLAG, AT(ask_password), .help = "ask for a new password on the terminal"},
    {"thumbprint", OPT_TEXT, AT(thumbprint), .value = "SHA256", .help = "trust the certificate that has this SHA-256"},
    {"ca", OPT_TEXT, AT(ca), .value = "FILE", .help = "trust certificates of these CAs (PEM) for that host"},
    {"pin", OPT_FLAG, AT(pin), .help = "look at the server's certificate, show it, and trust it from now on"},
    {"yes", OPT_FLAG, AT(yes),
     .help = "do it without asking: trust the certificate that is shown; take away what is left over"},
    {"exports", OPT_FLAG, AT(exports), .help = "also end exports that nobody is connected to"},
    {"interrupted", OPT_FLAG, AT(interrupted), .help = "also what failed backups left for the next one to go on from"},
    {"jobs", OPT_FLAG, AT(jobs), .help = "also end jobs that are old, or silent"},
    {"older-than", OPT_U64, AT(older_than), .value = "MINUTES",
     .help = "of exports since somebody read (1), of jobs since they began (1440)", .min = 1, .max = 366 * 24 * 60},
    {"bitmaps", OPT_FLAG, AT(bitmaps),
     .help = "all dirty bitmaps of ours in that VM: the next backup compares, or is a full"},
    {"token-file", OPT_TEXT, AT(token_file), .value = "PATH", .help = "file that holds the token, in one line"},
    {"token-fd", OPT_TEXT, AT(token_fd), .value = "N", .help = "descriptor to read the token from"},
    {"role", OPT_TEXT, AT(role), .value = "ROLE", .help = "admin, operator, viewer or node"},
    {"expires", OPT_TEXT, AT(expires), .value = "DAYS", .help = "the token is of no use after so many days (never)"},
    {"actor", OPT_TEXT, AT(actor), .value = "NAME", .help = "only what was done with this token"},
    {"failed", OPT_FLAG, AT(failed), .help = "only what was refused, or failed"},
    {"head", OPT_TEXT, AT(head), .value = "HASH",
     .help = "a head that was noted before: it has to be in the log still"},
    {"source", OPT_TEXT, AT(source), .value = "SOURCE", .help = "the source that the VM is read through"},
    {"unallocated", OPT_TEXT, AT(unallocated), .value = "WHAT",
     .help = "with what the vCenter calls not in use: read (the default), or zero"},
    {"audit-blocks", OPT_TEXT, AT(audit_blocks), .value = "N",
     .help = "of each increment to look at though they are called unchanged; 0: none; default: the hub's"},
    {"quiesce", OPT_TEXT, AT(quiesce), .value = "HOW", .help = "the guest, before its snapshot: auto, off or require"},
    {"disks-unsupported", OPT_TEXT, AT(disks_unsupported), .value = "WHAT",
     .help = "disks that no snapshot holds: fail (the default) or skip"},
    {"exclude", OPT_LIST, AT(exclude), .value = "KEY", .help = "a disk to leave out; repeat it for more"},
    {"adopt", OPT_TEXT, AT(adopt), .value = "VM", .help = "carry on the points of a removed VM, by name or UUID"},
    {"name", OPT_TEXT, AT(name), .value = "NEW", .help = "the new name"},
    {"all", OPT_FLAG, AT(all), .help = "also VMs that are not registered and have points"},
    {"repo", OPT_TEXT, AT(repo), .value = "REPO", .help = "a repository, by name or number"},
    {"vm", OPT_TEXT, AT(vm), .value = "NAME", .help = "only of this VM; with --source: its inventory path or moref"},
    {"status", OPT_TEXT, AT(status), .value = "STATUS",
     .help = "pending, running, committing, completed, failed or cancelled"},
    {"limit", OPT_U64, AT(limit), .value = "N", .help = "at most so many (100)", .min = 1, .max = 1000},
    {"full", OPT_FLAG, AT(full), .help = "read and store everything"},
    {"incremental", OPT_FLAG, AT(incremental), .help = "what changed (the default where there is a parent)"},
    {"disable", OPT_FLAG, AT(disable), .help = "nobody logs in as that user, from now on"},
    {"enable", OPT_FLAG, AT(enable), .help = "undo --disable"},
    {"no-client", OPT_FLAG, AT(no_client), .help = "do not start a client; say what to run instead"},
    {"detach", OPT_FLAG, AT(detach), .help = "do not wait for the end"},
    {"with-dependents", OPT_FLAG, AT(with_dependents), .help = "and every later backup that rests on it"},
    {"disk", OPT_TEXT, AT(disk), .value = "N|KEY", .help = "a disk, by number or key"},
    {"all-disks", OPT_FLAG, AT(all_disks), .help = "every disk, as disk-<number>.raw or .qcow2 in a folder"},
    {"to", OPT_TEXT, AT(to), .value = "PATH", .help = "where to write"},
    {"force", OPT_FLAG, AT(force), .help = "replace an existing file, overwrite a block device"},
    {.name = NULL},
};

const Option *option_find(const char *name)
{
    for (const Option *o = option_table; o->name; o++)
        if (str_eq(o->name, name))
            return o;
    return NULL;
}

static Opt opt_of(const Option *o, CliValues *values)
{
    return (Opt){.name = o->name,
                 .kind = o->kind,
                 .target = (char *)values + o->target,
                 .min = o->min,
                 .max = o->max,
                 .value = o->value,
                 .help = o->help};
}

void option_collect(const Command *command, CliValues *values, Opt ret[OPTION_MAX])
{
    size_t n = 0;
    for (size_t i = 0; command && i < COMMAND_OPTIONS && command->options[i]; i++) {
        const Option *o = option_find(command->options[i]);
        if (o) // a unit test sees that there is one
            ret[n++] = opt_of(o, values);
    }
    for (const Option *o = option_table; o->name; o++)
        if (o->global)
            ret[n++] = opt_of(o, values);
    ret[n] = (Opt){.name = NULL};
}
