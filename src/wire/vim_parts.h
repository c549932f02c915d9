// What the files of vim.h share. Private to wire/vim*.c.
#pragma once

#include "codec/xml.h"
#include "wire/http_client.h"
#include "wire/vim.h"

#define VIM_NAMESPACE "urn:vim25"
#define VIM_REQUEST_MAX ((size_t)256 << 10)
#define VIM_MOREF_MAX 255               // bytes of a reference's value
#define VIM_TEXT_MAX ((size_t)64 << 10) // bytes of any other text

struct Vim {
    HttpClient *http;
    char *host; // as the spec has it, for messages
    char *url;
    char *user;
    Secret password;
    Secret cookie;
    char *session_key; // "": never logged in
    bool no_login;     // NotAuthenticated is an error like any other
    unsigned logins;   // tells one session from the next
    char *action;      // the SOAPAction header, which says what version of the API is spoken
    // RetrieveServiceContent
    char *full_name, *api_type, *api_version, *instance_uuid;
    char *root_folder, *property_collector, *view_manager, *search_index, *session_manager, *authorization_manager;
    TlsCertificate shown;
    const atomic_bool *cancel;
    int timeout_ms, patience_ms;
    int64_t last_ms; // clock_mono_ms() of the last answer
    bool begun;      // the last call's on_reply was called
    VimFault fault;
    char *fault_task; // of TaskInProgress: its moref; NULL: none
};

// ---- calls (vim_call.c)

// The current element is the call's …Response.
typedef bool (*VimReply)(void *ctx, XmlReader *r, Err *err);

typedef struct VimCall {
    const char *method;
    const char *type, *moref; // of _this
    const char *arguments;    // XML; NULL: none
    VimReply on_reply;        // NULL: nothing in it is of interest
    void *ctx;
    bool repeats;  // does no harm when it is done twice: repeated if it is unclear whether it was done
    bool hands_on; // on_reply passes on what it reads: not repeated once it has begun. Else it may begin anew
    bool bound;    // to an object of this session: not repeated in a new one, but ERR_UNAVAILABLE
    int wait_ms;   // the server may take so long besides
} VimCall;

bool vim_call(Vim *v, const VimCall *c, Err *err) must_check;
// A call whose fault is of no interest, and which goes on after a cancel: 5 s at most.
void vim_call_anyway(Vim *v, const VimCall *c);
// A call that answers with one text or reference, to *ret (the caller's, "" if the server said nothing).
bool vim_call_text(Vim *v, VimCall c, char **ret, Err *err) must_check;
void vim_pause(Vim *v, int ms); // or until cancelled
// A fault's element as <detail> or a task's info.error has it: type_of its xsi:type.
bool vim_fault_read(Vim *v, XmlReader *r, Err *err) must_check;
bool vim_fault_fail(const Vim *v, const char *what, Err *err); // v->fault as an Err. Returns false
void vim_fault_clear(Vim *v);

// ---- the session (vim.c)
bool vim_login(Vim *v, Err *err) must_check;

// ---- bits of requests and answers (vim_props.c)
bool vim_add_moref(StrBuf *b, const char *element, const char *type, const char *moref, Err *err) must_check;
bool vim_read_text(XmlReader *r, char **ret, Err *err) must_check; // replaces *ret, which free() takes
bool vim_read_bool(XmlReader *r, bool *ret, Err *err) must_check;
bool vim_read_said(XmlReader *r, VimSaid *ret, Err *err) must_check;
bool vim_read_u64(XmlReader *r, uint64_t *ret, Err *err) must_check;
bool vim_read_i32(XmlReader *r, int32_t *ret, Err *err) must_check;

// ---- properties (vim_props.c)

// One object of an answer: begin() with its reference; property() for each (the current element is its val); end().
// Each may be NULL but property.
typedef struct VimObjects {
    bool (*begin)(void *ctx, const char *type, const char *moref, Err *err);
    bool (*property)(void *ctx, const char *name, XmlReader *r, Err *err);
    bool (*end)(void *ctx, Err *err);
    void *ctx;
} VimObjects;

typedef struct VimPaths {
    const char *type;
    const char *const *paths; // NULL-terminated
} VimPaths;

bool vim_add_paths(StrBuf *b, const VimPaths *sets, size_t n, Err *err) must_check; // <propSet>…
// One object, and those that `select` (XML of selectSet elements; NULL: none) leads to from there.
bool vim_properties(Vim *v, const char *type, const char *moref, const char *select, const VimPaths *sets, size_t n,
                    const VimObjects *objects, Err *err) must_check;
// Every object of those types below the root folder, page by page.
bool vim_view(Vim *v, const char *const *types, const VimPaths *sets, size_t n, const VimObjects *objects, Err *err)
    must_check;

// ---- VMs (vim_vm.c)
extern const char *const vim_vm_paths[];

typedef struct VimVmReader { // one VM that is being read
    VimVm vm;
    char *parent, *parent_vapp; // morefs
} VimVmReader;
void vim_vm_reader_clear(VimVmReader *r);
bool vim_vm_begin(VimVmReader *r, const char *moref, Err *err) must_check;
bool vim_vm_property(VimVmReader *r, const char *name, XmlReader *x, Err *err) must_check;
bool vim_vm_end(VimVmReader *r, Err *err) must_check;                    // every text is there
void vim_name_decode(char *name);                                        // of the inventory: "a%2fb" -> "a/b"
bool vim_devices_read(XmlReader *x, VimDisks *ret, Err *err) must_check; // config.hardware.device

// ---- tasks (vim_task.c)
// Waits for it. *ret_result: the reference that it ended with, or ""; NULL: not wanted.
bool vim_task_wait(Vim *v, const char *task, int64_t deadline, char **ret_result, Err *err) must_check;
