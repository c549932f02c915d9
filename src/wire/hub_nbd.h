// The way to an export of the hub's: its unix socket, where that is on this machine; else a call of the hub's API that
// becomes an NBD connection (docs/internals/wire.md). Each connection that the second one has is a thread.
#pragma once

#include "wire/hub_api.h"
#include "wire/nbd.h"

typedef struct HubNbd HubNbd;

// uri: as the hub gave it, "nbd+unix:///NAME?socket=PATH". path: the call that leads there, from "/api/v1" on. What is
// needed of h is copied. ERR_PROTOCOL: another uri.
bool hub_nbd_new(const HubApi *h, const char *uri, const char *path, HubNbd **ret, Err *err) must_check;
// Says in spec where the export is. Borrowed: n has to outlive what is opened with it. Connections are made in the
// thread that opens or uses that.
void hub_nbd_spec(HubNbd *n, NbdSpec *spec);
// When nothing that was opened with it is left; waits until its threads have ended, some seconds at most. NULL is fine.
void hub_nbd_free(HubNbd *n);
