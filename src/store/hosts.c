#include "store/hosts.h"

#include "base/num.h"
#include "base/str.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#define ENTRY_MAX 300

static bool set_name(StoreHost *h, const char *name, size_t n, Err *err)
{
    if (n == 0)
        return err_set(err, ERR_USAGE, "db-host: there is an empty host in it");
    if (n >= sizeof(h->name))
        return err_set(err, ERR_USAGE, "db-host: %.40s… is too long", name);
    memcpy(h->name, name, n);
    h->name[n] = '\0';
    return true;
}

static bool is_ipv6(const char *text)
{
    struct in6_addr address;
    return inet_pton(AF_INET6, text, &address) == 1;
}

// One of a list, or all there is.
static bool parse_one(const char *entry, unsigned port, StoreHost *ret, Err *err)
{
    StoreHost h = {.port = port};
    const char *rest; // from the colon on
    uint64_t number = port;
    Err bad = ERR_INIT;
    if (entry[0] == '/')
        return err_set(err, ERR_USAGE, "db-host: a socket, %s, stands alone", entry);
    if (strpbrk(entry, " \t") != NULL)
        return err_set(err, ERR_USAGE, "db-host: \"%s\" has a space in it", entry);
    if (entry[0] == '[') {
        const char *end = strchr(entry, ']');
        if (!end || !set_name(&h, entry + 1, (size_t)(end - entry - 1), err) || !is_ipv6(h.name))
            return err_set(err, ERR_USAGE, "db-host: %s is no IPv6 address in brackets", entry);
        rest = end + 1;
    } else if (strchr(entry, ':') != strrchr(entry, ':')) {
        return err_set(err, ERR_USAGE, "db-host: %s; HINT: IPv6 addresses are written in brackets, [::1]:3306", entry);
    } else {
        size_t n = strcspn(entry, ":");
        if (!set_name(&h, entry, n, err))
            return false;
        rest = entry + n;
    }
    if (rest[0] != '\0' && (rest[0] != ':' || !num_u64(rest + 1, 1, UINT16_MAX, &number, &bad)))
        return err_set(err, ERR_USAGE, "db-host: %s: what follows the host is no port (1 to 65535)", entry);
    h.port = (unsigned)number;
    *ret = h;
    return true;
}

static bool is_among(const StoreHosts *hosts, const StoreHost *h)
{
    for (size_t i = 0; i < hosts->len; i++)
        if (str_eq(hosts->at[i].name, h->name) && hosts->at[i].port == h->port)
            return true;
    return false;
}

static const char *trim(char *entry)
{
    entry += strspn(entry, " \t");
    for (size_t n = strlen(entry); n > 0 && (entry[n - 1] == ' ' || entry[n - 1] == '\t'); n--)
        entry[n - 1] = '\0';
    return entry;
}

bool store_hosts_parse(const char *text, unsigned port, StoreHosts *ret, Err *err)
{
    StoreHosts hosts = {.at = {{.port = port}}, .len = 1};
    if (text[0] == '/' || is_ipv6(text)) {
        if (!set_name(&hosts.at[0], text, strlen(text), err))
            return false;
        *ret = hosts;
        return true;
    }
    hosts.len = 0;
    for (const char *at = text;; at++) {
        size_t n = strcspn(at, ",");
        char entry[ENTRY_MAX];
        StoreHost h;
        if (n >= sizeof(entry))
            return err_set(err, ERR_USAGE, "db-host: %.40s… is too long", at);
        memcpy(entry, at, n);
        entry[n] = '\0';
        if (hosts.len == STORE_HOSTS_MAX)
            return err_set(err, ERR_USAGE, "db-host: more than %d hosts", STORE_HOSTS_MAX);
        if (!parse_one(trim(entry), port, &h, err))
            return false;
        if (is_among(&hosts, &h))
            return err_set(err, ERR_USAGE, "db-host: %s is there twice", trim(entry));
        hosts.at[hosts.len++] = h;
        at += n;
        if (*at == '\0')
            break;
    }
    *ret = hosts;
    return true;
}
