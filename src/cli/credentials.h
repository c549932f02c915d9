// What sendense login keeps: for each hub a token, and the thumbprint of its certificate where it needs one, in a file
// that only its owner may read
// ($SENDENSE_CREDENTIALS, else sendense/credentials.json below $XDG_CONFIG_HOME or ~/.config).
#pragma once

#include "base/secret.h"
#include "wire/tls.h"

// For a command: from SENDENSE_TOKEN, else the file that SENDENSE_TOKEN_FILE names, else what was kept for this URL;
// none of them is no error, and *ret is none. ERR_USAGE: a file that others may read, or that is not what it should be.
bool credentials_find(const char *hub_url, Secret *ret, Err *err) must_check;
// Likewise whom to trust: a thumbprint of the environment, else the one that was kept, else CAs of the environment
// (hub_trust_environment()). hub_trust_clear().
bool credentials_trust(const char *hub_url, TlsTrust *ret, Err *err) must_check;
// In place of what was kept. thumbprint: NULL: none.
bool credentials_keep(const char *hub_url, const Secret *token, const char *thumbprint, Err *err) must_check;
bool credentials_forget(const char *hub_url, bool *ret_any, Err *err) must_check;
