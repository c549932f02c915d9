// vsphere-simulator: the property collector: views, traversal, pages, filters and updates.
#include "simulator_collector.h"

#include "base/clock.h"

#include <time.h>

const xmlNode *node_first(const xmlNode *node)
{
    const xmlNode *n = node ? node->children : NULL;
    while (n && n->type != XML_ELEMENT_NODE)
        n = n->next;
    return n;
}

static const xmlNode *named(const xmlNode *n, const char *name)
{
    while (n && (n->type != XML_ELEMENT_NODE || strcmp((const char *)n->name, name) != 0))
        n = n->next;
    return n;
}

const xmlNode *node_child(const xmlNode *node, const char *name)
{
    return node ? named(node->children, name) : NULL;
}

const xmlNode *node_next(const xmlNode *node, const char *name)
{
    return named(node->next, name);
}

const char *node_text(const xmlNode *node)
{
    const xmlNode *n = node ? node->children : NULL;
    return n && n->type == XML_TEXT_NODE && n->content ? (const char *)n->content : "";
}

const char *node_attribute(const xmlNode *node, const char *name)
{
    for (const xmlAttr *a = node ? node->properties : NULL; a; a = a->next) {
        if (!a->ns && strcmp((const char *)a->name, name) == 0)
            return a->children && a->children->content ? (const char *)a->children->content : "";
    }
    return "";
}

static bool is_true(const xmlNode *node)
{
    return strcmp(node_text(node), "true") == 0 || strcmp(node_text(node), "1") == 0;
}

static bool no_such_object(Fault *fault, const xmlNode *ref)
{
    char body[256];
    snprintf(body, sizeof body, "<obj type=\"%s\">%s</obj>", node_attribute(ref, "type"), node_text(ref));
    return fault_set(fault, "ManagedObjectNotFound", body, "managed object not found: %s:%s",
                     node_attribute(ref, "type"), node_text(ref));
}

static char *own_id(const Session *session)
{
    char uuid[UUID_TEXT];
    sim_new_uuid(uuid);
    return sim_printf("session[%s]%s", session->key, uuid);
}

bool collector_create_view(const xmlNode *call, Session *session, FILE *out, Fault *fault)
{
    const xmlNode *container = node_child(call, "container");
    Entity *e = state_entity(node_text(container));
    if (!e)
        return no_such_object(fault, container);
    View *view = sim_more(NULL, 0, sizeof *view);
    view->id = own_id(session);
    view->container = e;
    view->recursive = is_true(node_child(call, "recursive"));
    for (const xmlNode *t = node_child(call, "type"); t; t = node_next(t, "type"))
        *grow(view->types, view->n_types) = sim_strdup(node_text(t));
    *grow(session->views, session->n_views) = view;
    x_ref(out, "returnval", "ContainerView", view->id);
    return true;
}

// ---- from a specification to objects

typedef struct Walk {
    const xmlNode *spec;
    Session *session;
    PropSet *props;
    size_t n_props;
    Ref *refs;
    size_t n_refs;
} Walk;

static void take(Walk *walk, const Ref *ref)
{
    for (size_t i = 0; i < walk->n_props; i++) {
        if (!ref_is(ref, walk->props[i].type))
            continue;
        Entity *e = ref_is(ref, "ManagedEntity") ? ref->p : NULL;
        if (e && e->seen == sim.walk)
            return;
        if (e)
            e->seen = sim.walk;
        *grow(walk->refs, walk->n_refs) = *ref;
        return;
    }
}

static void in_view(const View *view, Entity *at, Entity ***list, size_t *n)
{
    for (size_t i = 0; i < at->n_children; i++) {
        Entity *e = at->children[i];
        bool wanted = view->n_types == 0;
        for (size_t t = 0; t < view->n_types; t++)
            wanted = wanted || entity_is(e, view->types[t]);
        if (wanted)
            *grow(*list, *n) = e;
        if (view->recursive)
            in_view(view, e, list, n);
    }
}

// The entities that a path leads to. Caller frees the list.
static Entity **follow(const Ref *ref, const char *path, size_t *ret_n)
{
    Entity **list = NULL;
    size_t n = 0;
    if (strcmp(ref->type, "ContainerView") == 0) {
        if (strcmp(path, "view") == 0)
            in_view(ref->p, ((View *)ref->p)->container, &list, &n);
    } else if (strcmp(path, "parent") == 0 && ref_is(ref, "ManagedEntity")) {
        if (((const Entity *)ref->p)->parent)
            *grow(list, n) = ((const Entity *)ref->p)->parent;
    } else if (strcmp(ref->type, "Folder") == 0 || strcmp(ref->type, "Datacenter") == 0) {
        const Entity *e = ref->p;
        for (size_t i = 0; i < e->n_children; i++) {
            const char *name = e->children[i]->name;
            bool all = e->type == FOLDER && strcmp(path, "childEntity") == 0;
            bool this = e->type == DATACENTER && strncmp(path, name, strlen(name)) == 0 &&
                strcmp(path + strlen(name), "Folder") == 0;
            if (all || this)
                *grow(list, n) = e->children[i];
        }
    }
    *ret_n = n;
    return list;
}

static const xmlNode *by_name(const xmlNode *at, const char *name)
{
    for (const xmlNode *s = node_child(at, "selectSet"); s; s = node_next(s, "selectSet")) {
        if (node_child(s, "path") && strcmp(node_text(node_child(s, "name")), name) == 0)
            return s;
        const xmlNode *deeper = by_name(s, name);
        if (deeper)
            return deeper;
    }
    return NULL;
}

static void walk_on(Walk *walk, const Ref *ref, const xmlNode *selects, int depth)
{
    for (const xmlNode *s = node_child(selects, "selectSet"); s && depth < 64; s = node_next(s, "selectSet")) {
        const xmlNode *t = s;
        for (const xmlNode *o = node_child(walk->spec, "objectSet"); !node_child(t, "path") && o;
             o = node_next(o, "objectSet")) {
            const xmlNode *found = by_name(o, node_text(node_child(s, "name")));
            t = found ? found : t;
        }
        if (!node_child(t, "path") || !ref_is(ref, node_text(node_child(t, "type"))))
            continue;
        size_t n;
        Entity **list = follow(ref, node_text(node_child(t, "path")), &n);
        for (size_t i = 0; i < n; i++) {
            Ref next = {entity_type_name(list[i]->type), list[i]->id, list[i]};
            if (!is_true(node_child(t, "skip")))
                take(walk, &next);
            walk_on(walk, &next, t, depth + 1);
        }
        free(list);
    }
}

static bool walk_spec(Walk *walk, const xmlNode *spec, Fault *fault)
{
    walk->spec = spec;
    sim.walk++;
    for (const xmlNode *p = node_child(spec, "propSet"); p; p = node_next(p, "propSet")) {
        PropSet *set = grow(walk->props, walk->n_props);
        set->type = sim_strdup(node_text(node_child(p, "type")));
        set->all = is_true(node_child(p, "all"));
        for (const xmlNode *n = node_child(p, "pathSet"); n; n = node_next(n, "pathSet"))
            *grow(set->paths, set->n_paths) = sim_strdup(node_text(n));
        for (size_t i = 0; set->all && prop_paths_vm[i] && strcmp(set->type, "VirtualMachine") == 0; i++)
            *grow(set->paths, set->n_paths) = sim_strdup(prop_paths_vm[i]);
    }
    for (const xmlNode *o = node_child(spec, "objectSet"); o; o = node_next(o, "objectSet")) {
        const xmlNode *obj = node_child(o, "obj");
        Ref ref;
        if (!ref_find(node_text(obj), &ref, walk->session))
            return no_such_object(fault, obj);
        if (!is_true(node_child(o, "skip")))
            take(walk, &ref);
        walk_on(walk, &ref, o, 0);
    }
    return true;
}

// ---- pages

static bool invalid_property(Fault *fault, const char *path)
{
    char body[160];
    snprintf(body, sizeof body, "<name>%.100s</name>", path);
    return fault_set(fault, "InvalidProperty", body, "%s", "");
}

static bool put_object(const Ref *ref, const PropSet *props, size_t n_props, FILE *out, Fault *fault)
{
    fputs("<objects>", out);
    x_ref(out, "obj", ref->type, ref->id);
    const char *number = strpbrk(ref->id, "0123456789");
    for (size_t i = 0; i < n_props; i++) {
        for (size_t j = 0; ref_is(ref, props[i].type) && j < props[i].n_paths; j++) {
            const char *path = props[i].paths[j];
            cleanup_free char *value = NULL;
            size_t len = 0;
            bool known;
            FILE *memory = open_memstream(&value, &len);
            bool set = prop_render(ref, path, memory, &known);
            fclose(memory);
            if (!known)
                return invalid_property(fault, path);
            // What is not set is missing, or has a name and no value: vcsim does either
            bool named_only = number && strtol(number, NULL, 10) % 2 == 0 && strncmp(path, "config.c", 8) == 0;
            if (!set && !named_only)
                continue;
            fputs("<propSet>", out);
            x_element(out, "name", "%s", path);
            fwrite(value, 1, set ? len : 0, out);
            fputs("</propSet>", out);
        }
    }
    fputs("</objects>", out);
    return true;
}

static bool put_page(Session *session, Page *page, FILE *out, Fault *fault)
{
    size_t end = page->max ? MIN(page->n_refs, page->at + page->max) : page->n_refs;
    if (page->n_refs == 0)
        return true;
    fputs("<returnval>", out);
    page->token[0] = 0;
    if (end < page->n_refs) {
        sim_new_uuid(page->token);
        x_element(out, "token", "%s", page->token);
        bool kept = false;
        for (size_t i = 0; i < session->n_pages; i++)
            kept = kept || session->pages[i] == page;
        if (!kept)
            *grow(session->pages, session->n_pages) = page;
    }
    for (; page->at < end; page->at++) {
        if (!put_object(&page->refs[page->at], page->props, page->n_props, out, fault))
            return false;
    }
    fputs("</returnval>", out);
    return true;
}

bool collector_retrieve(const xmlNode *call, Session *session, FILE *out, Fault *fault)
{
    Walk walk = {.session = session};
    for (const xmlNode *s = node_child(call, "specSet"); s; s = node_next(s, "specSet")) {
        if (!walk_spec(&walk, s, fault))
            return false;
    }
    Page *page = sim_more(NULL, 0, sizeof *page);
    *page = (Page){.props = walk.props, .n_props = walk.n_props, .refs = walk.refs, .n_refs = walk.n_refs};
    page->max = strtoull(node_text(node_child(node_child(call, "options"), "maxObjects")), NULL, 10);
    if (sim.page_max && (page->max == 0 || page->max > sim.page_max))
        page->max = sim.page_max;
    return put_page(session, page, out, fault);
}

bool collector_continue(const xmlNode *call, Session *session, FILE *out, Fault *fault)
{
    const char *token = node_text(node_child(call, "token"));
    for (size_t i = 0; *token && i < session->n_pages; i++) {
        if (strcmp(session->pages[i]->token, token) == 0)
            return put_page(session, session->pages[i], out, fault);
    }
    return fault_set(fault, "InvalidArgument", "<invalidProperty>token</invalidProperty>",
                     "A specified parameter was not correct: token");
}

// ---- filters

bool collector_create_filter(const xmlNode *call, Session *session, FILE *out, Fault *fault)
{
    Walk walk = {.session = session};
    if (!walk_spec(&walk, node_child(call, "spec"), fault))
        return false;
    Filter *filter = sim_more(NULL, 0, sizeof *filter);
    *filter = (Filter){
        .id = own_id(session), .props = walk.props, .n_props = walk.n_props, .refs = walk.refs, .n_refs = walk.n_refs};
    *grow(session->filters, session->n_filters) = filter;
    x_ref(out, "returnval", "PropertyFilter", filter->id);
    return true;
}

bool collector_destroy_filter(const char *id, Session *session, Fault *fault)
{
    for (size_t i = 0; i < session->n_filters; i++) {
        if (strcmp(session->filters[i]->id, id) == 0 && !session->filters[i]->gone) {
            session->filters[i]->gone = true;
            return true;
        }
    }
    return fault_set(fault, "ManagedObjectNotFound", NULL, "managed object not found: PropertyFilter:%s", id);
}

static size_t paths_of(const Filter *filter)
{
    size_t n = 0;
    for (size_t i = 0; i < filter->n_props; i++)
        n += filter->props[i].n_paths;
    return n;
}

static void forget(Filter *filter)
{
    size_t n = filter->n_refs * paths_of(filter);
    for (size_t i = 0; filter->sent && i < n; i++)
        free(filter->sent[i]);
    free(mem_take(filter->sent));
}

static bool put_changes(Filter *filter, size_t at, const Ref *ref, FILE *out, Fault *fault, bool *ret_any)
{
    char **sent = filter->sent + at * paths_of(filter);
    for (size_t i = 0; i < filter->n_props; i++) {
        for (size_t j = 0; j < filter->props[i].n_paths; j++, sent++) {
            if (!ref_is(ref, filter->props[i].type))
                continue;
            char *value = NULL;
            size_t len = 0;
            bool known;
            FILE *memory = open_memstream(&value, &len);
            prop_render(ref, filter->props[i].paths[j], memory, &known);
            fclose(memory);
            if (!known || (*sent && strcmp(*sent, value) == 0)) {
                free(value);
                if (!known)
                    return invalid_property(fault, filter->props[i].paths[j]);
                continue;
            }
            fputs("<changeSet>", out);
            x_element(out, "name", "%s", filter->props[i].paths[j]);
            fprintf(out, "<op>assign</op>%s</changeSet>", value);
            free(*sent);
            *sent = value;
            *ret_any = true;
        }
    }
    return true;
}

// What the client has not been told yet; *ret_any: there is something.
static bool put_updates(Session *session, FILE *out, Fault *fault, bool *ret_any)
{
    *ret_any = false;
    for (size_t f = 0; f < session->n_filters; f++) {
        Filter *filter = session->filters[f];
        bool entering = !filter->sent, any = false;
        if (filter->gone)
            continue;
        if (entering)
            filter->sent = sim_more(NULL, 0, (filter->n_refs * paths_of(filter) + 1) * sizeof(char *));
        cleanup_free char *objects = NULL;
        size_t len = 0;
        FILE *memory = open_memstream(&objects, &len);
        bool ok = true;
        for (size_t i = 0; i < filter->n_refs && ok; i++) {
            cleanup_free char *changes = NULL;
            size_t n = 0;
            bool changed = false;
            FILE *inner = open_memstream(&changes, &n);
            ok = put_changes(filter, i, &filter->refs[i], inner, fault, &changed);
            fclose(inner);
            if (!changed)
                continue;
            any = true;
            fprintf(memory, "<objectSet><kind>%s</kind>", entering ? "enter" : "modify");
            x_ref(memory, "obj", filter->refs[i].type, filter->refs[i].id);
            fprintf(memory, "%s</objectSet>", changes);
        }
        fclose(memory);
        if (!ok)
            return false;
        if (any) {
            fputs("<filterSet>", out);
            x_ref(out, "filter", "PropertyFilter", filter->id);
            fprintf(out, "%s</filterSet>", objects);
            *ret_any = true;
        }
    }
    return true;
}

bool collector_wait(const xmlNode *call, Session *session, FILE *out, Fault *fault)
{
    const char *version = node_text(node_child(call, "version"));
    const xmlNode *limit = node_child(node_child(call, "options"), "maxWaitSeconds");
    int64_t until = clock_mono_ms() + 1000 * (limit ? strtol(node_text(limit), NULL, 10) : 1800);
    if (!*version) {
        for (size_t i = 0; i < session->n_filters; i++)
            forget(session->filters[i]);
    } else if (strtoull(version, NULL, 10) != session->version) {
        return fault_set(fault, "InvalidCollectorVersion", NULL, "%s", "");
    }
    for (;;) {
        cleanup_free char *updates = NULL;
        size_t len = 0;
        bool any;
        FILE *memory = open_memstream(&updates, &len);
        bool ok = put_updates(session, memory, fault, &any);
        fclose(memory);
        if (!ok)
            return false;
        if (any) {
            fprintf(out, "<returnval><version>%ju</version>%s</returnval>", (uintmax_t)++session->version, updates);
            return true;
        }
        if (clock_mono_ms() >= until || sim.stopping || sim.down)
            return true;
        struct timespec t = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};
        pthread_cond_timedwait(&sim.changed, &sim.lock, &t);
        if (session->gone)
            return fault_set(fault, "NotAuthenticated",
                             "<object type=\"PropertyCollector\">propertyCollector</object>"
                             "<privilegeId>System.View</privilegeId>",
                             "%s", "");
    }
}
