// Who may do what (docs/internals/auth.md).
#pragma once

#include "base/err.h"

typedef enum Role {
    ROLE_VIEWER,   // looks at everything but the contents of disks
    ROLE_OPERATOR, // backs up, verifies, restores, scans
    ROLE_ADMIN,    // everything else besides: repositories, sources, VMs, deleting, tokens, the log of who did what
    ROLE_NODE,     // a machine on which clients run: jobs without a hub-started client, and replications
    ROLES
} Role;

// A set of roles, in the table of routes.
#define ROLE_BIT(role) (1u << (role))
#define MAY_ADMIN ROLE_BIT(ROLE_ADMIN)
#define MAY_OPERATE (MAY_ADMIN | ROLE_BIT(ROLE_OPERATOR))
#define MAY_LOOK (MAY_OPERATE | ROLE_BIT(ROLE_VIEWER))
#define MAY_RECORD (MAY_OPERATE | ROLE_BIT(ROLE_NODE))
#define MAY_ANY_ROLE (MAY_LOOK | ROLE_BIT(ROLE_NODE))

const char *role_name(Role r); // "viewer"
bool role_parse(const char *name, Role *ret, Err *err) must_check;
// "admin or operator": those in the set, for people; out has ROLE_SET_TEXT bytes.
#define ROLE_SET_TEXT 48
void role_set_text(unsigned set, char out[ROLE_SET_TEXT]);
