// The session: addresses, logging in and out, faults, renewal, repetition.
#include "fake_soap.h"

static void opens_and_closes(void **state)
{
    (void)state;
    FakeSession s = {0};
    fake_reset();
    fake_fixture("01-RetrieveServiceContent")->cookie = "vmware_soap_session=\"before\"; Path=/";
    fake_fixture("03-Login")->cookie = "vmware_soap_session=\"first\"; Path=/; HttpOnly; Secure";
    assert_ok(fake_login(&s), &s.err);
    fake_assert_like(0, "01-RetrieveServiceContent", NULL);
    fake_assert_like(1, "03-Login", NULL);
    assert_string_equal(fake.cookies[1], ""); // a session that has ended would keep us out
    VimAbout a = vim_about(s.vim);
    assert_string_equal(a.full_name, "VMware vCenter Server 6.5.0 build-5973321 (govmomi simulator)");
    assert_string_equal(a.api_type, "VirtualCenter");
    assert_string_equal(a.api_version, "6.5");
    assert_string_equal(a.instance_uuid, "2e465beb-9b97-5df6-ae2b-823baa05739c");
    assert_true(secret_equal(vim_session_cookie(s.vim), "vmware_soap_session=\"first\"")); // quotes included
    atomic_store(&s.cancel, true);                                                         // it logs out all the same
    fake_fixture("33-Logout");
    vim_close(s.vim);
    fake_assert_like(2, "33-Logout", NULL);
    assert_string_equal(fake.cookies[2], "vmware_soap_session=\"first\"");
    vim_close(NULL);
    fake_reset();
}

static void a_wrong_password(void **state)
{
    (void)state;
    FakeSession s = {0};
    fake_reset();
    fake_fixture("01-RetrieveServiceContent");
    fake_fault("InvalidLogin", "Login failure", "");
    assert_false(fake_login(&s));
    assert_int_equal(s.err.code, ERR_UNAUTHORIZED);
    assert_non_null(strstr(s.err.details, "InvalidLogin: Login failure"));
    assert_null(strstr(s.err.details, "pass;"));
    assert_int_equal(fake.asked, 2); // not tried again, and there is nothing to log out of
    fake_reset();
}

// A password with the signs of XML in it, and the longest.
static void passwords_are_escaped(void **state)
{
    (void)state;
    char longest[SECRET_MAX + 1] = {0};
    memset(longest, '&', SECRET_MAX);
    const char *const passwords[] = {"a<b>&\"'", longest};
    for (size_t i = 0; i < ARRAY_LEN(passwords); i++) {
        Err err = ERR_INIT;
        Vim *v = NULL;
        cleanup(secret_clear) Secret password = {0};
        fake_reset();
        fake_fixture("01-RetrieveServiceContent");
        fake_fixture("03-Login");
        fake_fixture("33-Logout");
        assert_ok(secret_set(&password, passwords[i], &err), &err);
        assert_ok(vim_open(&(VimSpec){.host = "[::1]:8989", .user = "A\\b & c", .password = &password}, &v, &err),
                  &err);
        fake_assert_asked(1, i == 0 ? "<password>a&lt;b&gt;&amp;&quot;&apos;</password>" : "&amp;&amp;</password>");
        fake_assert_asked(1, "<userName>A\\b &amp; c</userName>");
        vim_close(v);
    }
    fake_reset();
}

static void addresses(void **state)
{
    (void)state;
    static const char *const bad[] = {"",       "a b",     "https://vc", "vc/sdk",   "vc:",      "vc:0",     "vc:65536",
                                      "vc:44x", "user@vc", "::1",        "[::1",     "[]:443",   "[::1]443", "[vc]:443",
                                      "vc?x",   "vc#x",    "vc%41",      "vc\nX: y", "vc:443:1", "ü.test"};
    cleanup(secret_clear) Secret password = {0};
    Err err = ERR_INIT;
    fake_reset();
    assert_ok(secret_set(&password, "x", &err), &err);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        Vim *v = NULL;
        VimSpec spec = {.host = bad[i], .user = "u", .password = &password};
        if (vim_open(&spec, &v, &err) || err.code != ERR_USAGE)
            fail_msg("'%s': %s", bad[i], err_name(err.code));
        err_clear(&err);
    }
    Vim *v = NULL;
    VimSpec spec = {.host = "vc", .user = "u", .password = &password, .thumbprint = "AA:BB"};
    assert_fails(vim_open(&spec, &v, &err), &err, ERR_INVALID);
    assert_int_equal(fake.asked, 0); // nothing was sent
}

static void thumbprints(void **state)
{
    (void)state;
    Err err = ERR_INIT;
    unsigned char a[32], b[32];
    static const char plain[] = "448f628a8a65aa18560e53a80c53acb38c51b427df03340823491411"
                                "47dc9bf6";
    static const char colons[] =
        "44:8F:62:8A:8A:65:AA:18:56:0E:53:A8:0C:53:AC:B3:8C:51:B4:27:DF:03:34:08:23:49:14:11:47:"
        "DC:9B:F6";
    static const char *const bad[] = {"",
                                      ":",
                                      "44",
                                      "44:8F",
                                      "x48f628a8a65aa18560e53a80c53acb38c51b427df0334082349141147dc9bf6",
                                      "448f628a8a65aa18560e53a80c53acb38c51b427df0334082349141147dc9bf6a",
                                      "448f628a8a65aa18560e53a80c53acb38c51b427df0334082349141147dc9bf6:",
                                      "4:48f628a8a65aa18560e53a80c53acb38c51b427df0334082349141147dc9bf6",
                                      "44::8f628a8a65aa18560e53a80c53acb38c51b427df0334082349141147dc9bf6"};
    assert_ok(tls_thumbprint_parse(plain, a, &err), &err);
    assert_ok(tls_thumbprint_parse(colons, b, &err), &err);
    assert_memory_equal(a, b, sizeof(a));
    assert_int_equal(a[0], 0x44);
    assert_int_equal(a[31], 0xf6);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        if (tls_thumbprint_parse(bad[i], b, &err))
            fail_msg("'%s' was taken", bad[i]);
        assert_int_equal(err.code, ERR_INVALID);
        err_clear(&err);
    }
}

static bool find(FakeSession *s)
{
    VimVm vm = {0};
    bool fine = vim_find(s->vim, "DC0/vm/nosuch", &vm, &s->err);
    vim_vm_clear(&vm);
    return fine;
}

// NotAuthenticated: logged in anew, and asked again, once.
static void an_ended_session_is_renewed(void **state)
{
    FakeSession *s = *state;
    fake_again();
    fake_fixture("02-NotAuthenticated");
    fake_fixture("03-Login")->cookie = "vmware_soap_session=\"second\"; Path=/";
    fake_fixture("05-FindByInventoryPath-none");
    assert_fails(find(s), &s->err, ERR_NOT_FOUND);
    fake_assert_like(1, "03-Login", NULL);
    fake_assert_like(2, "05-FindByInventoryPath-none", NULL);
    assert_string_equal(fake.cookies[1], "");
    assert_string_equal(fake.cookies[2], "vmware_soap_session=\"second\"");
    assert_string_equal(vim_fault(s->vim)->type, "");

    fake_again(); // refused in the new session as well
    fake_fixture("02-NotAuthenticated");
    fake_fixture("03-Login");
    fake_fixture("02-NotAuthenticated");
    assert_fails(find(s), &s->err, ERR_UNAUTHORIZED);
    assert_string_equal(vim_fault(s->vim)->type, "NotAuthenticated");
    assert_string_equal(vim_fault(s->vim)->property, "System.View");

    fake_again(); // the password was changed; next time it is tried again
    fake_fixture("02-NotAuthenticated");
    fake_fault("InvalidLogin", "", "");
    assert_fails(find(s), &s->err, ERR_UNAUTHORIZED);
    fake_fixture("02-NotAuthenticated");
    fake_fixture("03-Login");
    fake_fixture("05-FindByInventoryPath-none");
    assert_fails(find(s), &s->err, ERR_NOT_FOUND);
}

static void questions_are_repeated(void **state)
{
    FakeSession *s = *state;
    fake_again();
    fake_add(503, "busy");
    fake_fixture("05-FindByInventoryPath-none")->breaks = true; // after the whole of it: no end either
    fake_fixture("05-FindByInventoryPath-none");
    assert_fails(find(s), &s->err, ERR_NOT_FOUND);
    assert_false(fake.once[0]);

    fake_again();
    fake_add(200, "")->fails = ERR_UNAVAILABLE;
    fake_add(502, "");
    fake_add(504, "");
    assert_fails(find(s), &s->err, ERR_UNAVAILABLE); // three are enough

    fake_again();
    fake_add(200, "")->fails = ERR_PROTOCOL; // a certificate that is not trusted, for one
    assert_fails(find(s), &s->err, ERR_PROTOCOL);

    fake_again();
    fake_add(404, "<html>no vCenter</html>");
    assert_fails(find(s), &s->err, ERR_PROTOCOL);

    fake_again();
    atomic_store(&s->cancel, true);
    assert_fails(find(s), &s->err, ERR_CANCELLED);
    vim_set_cancel(s->vim, NULL);
    fake_fixture("05-FindByInventoryPath-none");
    assert_fails(find(s), &s->err, ERR_NOT_FOUND);
}

// A server that is started anew is away for longer than three tries take.
static void a_server_that_is_away_is_waited_for(void **state)
{
    FakeSession *s = *state;
    vim_set_patience(s->vim, 20000);
    fake_again();
    for (int i = 0; i < 3; i++)
        fake_add(503, "starting");
    fake_fixture("05-FindByInventoryPath-none");
    assert_fails(find(s), &s->err, ERR_NOT_FOUND);

    vim_set_patience(s->vim, 1000); // and is given up
    fake_again();
    for (int i = 0; i < 3; i++)
        fake_add(200, "")->fails = ERR_UNAVAILABLE;
    assert_fails(find(s), &s->err, ERR_UNAVAILABLE);

    vim_set_patience(s->vim, 20000); // what it answers is no reason to wait
    fake_again();
    fake_fault("HostNotConnected", "", "");
    assert_fails(find(s), &s->err, ERR_UNAVAILABLE);
}

static void faults_by_their_type(void **state)
{
    FakeSession *s = *state;
    static const struct {
        const char *type;
        ErrCode code;
    } cases[] = {
        {"NoPermission", ERR_FORBIDDEN},       {"ManagedObjectNotFound", ERR_NOT_FOUND},
        {"InvalidArgument", ERR_INVALID},      {"TaskInProgress", ERR_BUSY},
        {"FileFault", ERR_CONFLICT},           {"NotSupported", ERR_UNSUPPORTED},
        {"HostNotConnected", ERR_UNAVAILABLE}, {"NoDiskSpace", ERR_NO_SPACE},
        {"SomethingElse", ERR_PROTOCOL},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        fake_again();
        fake_fault(cases[i].type, i % 2 ? "" : "words", ""); // faultstring may be empty
        assert_false(find(s));
        if (s->err.code != cases[i].code)
            fail_msg("%s: %s", cases[i].type, err_name(s->err.code));
        assert_string_equal(vim_fault(s->vim)->type, cases[i].type);
        assert_true(str_starts(s->err.details, cases[i].type));
        err_clear(&s->err);
    }
    fake_again();
    fake_fault("InvalidArgument", "A specified parameter was not correct: changeId",
               "<faultCause><fault xsi:type='X'/></faultCause><invalidProperty>changeId</invalidProperty>");
    assert_fails(find(s), &s->err, ERR_INVALID);
    assert_string_equal(vim_fault(s->vim)->property, "changeId");
    assert_false(vim_fault(s->vim)->quiescing);

    fake_again(); // a general fault, whose message says it
    fake_fault("GenericVmConfigFault", "An error occurred",
               "<faultMessage><key>msg.snapshot.error-QUIESCINGERROR</key><arg><key>1</key></arg><message>no</message>"
               "</faultMessage><reason>x</reason>");
    assert_fails(find(s), &s->err, ERR_CONFLICT);
    assert_true(vim_fault(s->vim)->quiescing);

    fake_again(); // without an xsi:type: by the element
    fake_add(500,
             FAKE_ENVELOPE_BEGIN "<e:Fault><detail><FileFaultFault xmlns='urn:vim25'><file>[ds] a.vmdk</file>"
                                 "</FileFaultFault></detail></e:Fault>" FAKE_ENVELOPE_END);
    assert_fails(find(s), &s->err, ERR_CONFLICT);
    assert_string_equal(vim_fault(s->vim)->type, "FileFault");
    assert_string_equal(vim_fault(s->vim)->property, "[ds] a.vmdk");

    fake_again(); // without any detail
    fake_add(500, FAKE_ENVELOPE_BEGIN "<e:Fault><faultstring>odd</faultstring></e:Fault>" FAKE_ENVELOPE_END);
    assert_fails(find(s), &s->err, ERR_PROTOCOL);
    assert_string_equal(vim_fault(s->vim)->type, "Fault");
}

static void answers_without_sense(void **state)
{
    FakeSession *s = *state;
    static const char *const bad[] = {
        "",
        "<html/>",
        "<Envelope/>",
        FAKE_ENVELOPE_BEGIN FAKE_ENVELOPE_END,
        FAKE_ENVELOPE_BEGIN "<OtherResponse/>" FAKE_ENVELOPE_END,
        FAKE_ENVELOPE_BEGIN "<FindByInventoryPath/>" FAKE_ENVELOPE_END,
        FAKE_ENVELOPE_BEGIN "<FindByInventoryPathResponse/>" FAKE_ENVELOPE_END "<more/>",
        "<!DOCTYPE x>" FAKE_ENVELOPE_BEGIN "<FindByInventoryPathResponse/>" FAKE_ENVELOPE_END,
        // A fault with status 200 is nobody's fault
        FAKE_ENVELOPE_BEGIN "<e:Fault><faultstring>odd</faultstring></e:Fault>" FAKE_ENVELOPE_END,
        FAKE_ENVELOPE_BEGIN "<FindByInventoryPathResponse><returnval type='VirtualMachine'>vm<b/></returnval>"
                            "</FindByInventoryPathResponse>" FAKE_ENVELOPE_END,
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        fake_again();
        fake_add(200, bad[i]);
        if (find(s) || s->err.code != ERR_PROTOCOL)
            fail_msg("%s: %s", bad[i], err_name(s->err.code));
        err_clear(&s->err);
    }
    fake_again(); // and an answer with the status of a fault
    fake_fixture("04-FindByInventoryPath")->status = 500;
    assert_fails(find(s), &s->err, ERR_PROTOCOL);
}

static bool open_another(FakeSession *s)
{
    FakeSession other = {0};
    bool fine = fake_login(&other);
    s->err = other.err;
    vim_close(other.vim);
    return fine;
}

static void truncated_replies(void **state)
{
    FakeSession *s = *state;
    static const char *const content[] = {"01-RetrieveServiceContent"};
    static const char *const none[] = {"05-FindByInventoryPath-none"};
    static const char *const fault[] = {"30-Reconfig-by-nonexist"};
    fake_truncate(s, 1, content, open_another);
    fake_truncate(s, 1, none, find);
    fake_truncate(s, 1, fault, find);
}

// Nothing is asked while calls are made anyway, and a session that has ended is for the next call to renew.
static void keeps_alive_only_when_idle(void **state)
{
    FakeSession *s = *state;
    fake_again();
    vim_keep_alive(s->vim, 60000);
    assert_int_equal(fake.asked, 0);
    fake_fault("NotAuthenticated", "", "");
    vim_keep_alive(s->vim, 0);
    assert_int_equal(fake.asked, 1);
    assert_non_null(strstr(fake.requests[0], "<CurrentTime "));
}

#define IN_SESSION(test) cmocka_unit_test_setup_teardown(test, fake_open, fake_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opens_and_closes),
        cmocka_unit_test(a_wrong_password),
        cmocka_unit_test(passwords_are_escaped),
        cmocka_unit_test(addresses),
        cmocka_unit_test(thumbprints),
        IN_SESSION(an_ended_session_is_renewed),
        IN_SESSION(a_server_that_is_away_is_waited_for),
        IN_SESSION(questions_are_repeated),
        IN_SESSION(faults_by_their_type),
        IN_SESSION(answers_without_sense),
        IN_SESSION(truncated_replies),
        IN_SESSION(keeps_alive_only_when_idle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
