// vsphere-simulator: XML out, spelled as govmomi's vcsim spells it.
#include "simulator.h"

#include "base/clock.h"

#include <stdarg.h>

void x_text(FILE *out, const char *s)
{
    while (*s) {
        size_t n = strcspn(s, "<>&\"\r");
        fwrite(s, 1, n, out);
        s += n;
        switch (*s) {
        case '<': fputs("&lt;", out); break;
        case '>': fputs("&gt;", out); break;
        case '&': fputs("&amp;", out); break;
        case '"': fputs("&#34;", out); break;
        case '\r': fputs("&#xD;", out); break;
        default: return;
        }
        s++;
    }
}

void x_element(FILE *out, const char *name, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    cleanup_free char *text = NULL;
    if (vasprintf(&text, fmt, args) < 0)
        abort();
    va_end(args);
    fprintf(out, "<%s>", name);
    x_text(out, text);
    fprintf(out, "</%s>", name);
}

void x_ref(FILE *out, const char *name, const char *type, const char *id)
{
    fprintf(out, "<%s type=\"%s\">", name, type);
    x_text(out, id);
    fprintf(out, "</%s>", name);
}

void x_fault(FILE *out, const Fault *fault)
{
    fprintf(out, "<fault %s:type=\"%s\">%s</fault>", sim.prefix, fault->type, fault->body);
    x_element(out, "localizedMessage", "%s", fault->text);
}

void x_time(int64_t utc_us, char out[40])
{
    char text[CLOCK_TEXT];
    clock_format(utc_us, text);
    snprintf(out, 40, "%s", text);
}

bool fault_set(Fault *fault, const char *type, const char *body, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    snprintf(fault->type, sizeof fault->type, "%s", type);
    snprintf(fault->body, sizeof fault->body, "%s", body ? body : "");
    vsnprintf(fault->text, sizeof fault->text, fmt, args);
    va_end(args);
    return false;
}
