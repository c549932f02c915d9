#include "domain/role.h"

#include <stdio.h>
#include <string.h>

static const char *const names[ROLES] = {
    [ROLE_VIEWER] = "viewer", [ROLE_OPERATOR] = "operator", [ROLE_ADMIN] = "admin", [ROLE_NODE] = "node"};

const char *role_name(Role r)
{
    return names[r];
}

bool role_parse(const char *name, Role *ret, Err *err)
{
    for (unsigned r = 0; r < ROLES; r++) {
        if (strcmp(name, names[r]) != 0)
            continue;
        *ret = (Role)r;
        return true;
    }
    return err_set(err, ERR_INVALID, "\"%.32s\" is no role; HINT: admin, operator, viewer or node", name);
}

void role_set_text(unsigned set, char out[ROLE_SET_TEXT])
{
    size_t n = 0;
    out[0] = '\0';
    for (unsigned r = 0; r < ROLES; r++) {
        if (!(set & ROLE_BIT(r)))
            continue;
        set &= ~ROLE_BIT(r);
        const char *between = n == 0 ? "" : set ? ", " : " or ";
        n += (size_t)snprintf(out + n, ROLE_SET_TEXT - n, "%s%s", between, names[r]);
    }
}
