// vsphere-simulator: the property collector, and reading requests.
#pragma once

#include "simulator.h"

#include <libxml/tree.h>

// All accept NULL. Names are local ones. Text is borrowed, "" for none.
const xmlNode *node_child(const xmlNode *node, const char *name);
const xmlNode *node_first(const xmlNode *node); // the first child element
const xmlNode *node_next(const xmlNode *node, const char *name);
const char *node_text(const xmlNode *node);
const char *node_attribute(const xmlNode *node, const char *name); // without a namespace

bool collector_create_view(const xmlNode *call, Session *session, FILE *out, Fault *fault);
bool collector_retrieve(const xmlNode *call, Session *session, FILE *out, Fault *fault);
bool collector_continue(const xmlNode *call, Session *session, FILE *out, Fault *fault);
bool collector_create_filter(const xmlNode *call, Session *session, FILE *out, Fault *fault);
bool collector_destroy_filter(const char *id, Session *session, Fault *fault);
// Gives the lock away while it waits.
bool collector_wait(const xmlNode *call, Session *session, FILE *out, Fault *fault);
