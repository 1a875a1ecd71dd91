"""Who a desk lets in: hosts, forms, logins, proxies; and what a browser may do with its pages."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from dlfd_fleet.desk.access import LARGEST_FORM, rules_of
from dlfd_fleet.desk.login_record import LOGINS_FILE, LoginRecord
from dlfd_fleet.desk.logins import FAILURE_SECONDS, MOST_FAILURES, SESSION_SECONDS, Logins, read_tokens
from dlfd_fleet.desk.pages import Pages
from dlfd_fleet.desk.routes import application
from dlfd_fleet.desk.serving import guarded
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.settings import DeskSettings
from tests.clinic import make_clinic
from tests.command import run_command
from tests.desk_client import HERE, form_token

TOKEN, OTHER = "a-token-that-nobody-guesses", "another-token-of-somebody"


@pytest.fixture
def tokens(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"# who may log in\nM. Ode {TOKEN}\n\nNia {OTHER}\n")
    file.chmod(0o600)
    return file


@pytest.fixture
def desk():
    """Make a client of a desk with one page, which says who asks, and takes what it is sent."""

    def make(base=HERE, host="127.0.0.1", over_tls=False, client=("127.0.0.1", 5000), logins_file=None, **settings):
        rules = rules_of(DeskSettings(**settings), host, "ode", over_tls=over_tls, logins_file=logins_file)
        pages = Pages("clinic", {"/": "First"})

        def first(request):
            if request.method == "POST":
                return PlainTextResponse(f"{request.state.user} sent {request.state.form}")
            return pages.show(request, "login.html")

        access = guarded(application(pages, [Route("/", first, methods=["GET", "POST"])]), rules, pages, 8400)
        return TestClient(access, base_url=base, client=client, follow_redirects=False)

    return make


def post(client, path="/", token=None, **form):
    token = form_token(client.get("/login" if path == "/login" else "/")) if token is None else token
    return client.post(path, data={"csrf": token, **form})


# ---------------------------------------------------------------------- from where


@pytest.mark.parametrize("host", ["127.0.0.1:8400", "localhost:8400", "LOCALHOST", "[::1]:8400", "127.0.0.1"])
def test_a_desk_answers_under_its_own_names(desk, host):
    assert desk().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8400", "", "[::2]", "@127.0.0.1"]
)
@pytest.mark.parametrize("path", ["/", "/static/desk.css", "/nowhere"])
def test_another_name_is_another_page_that_led_the_browser_here(desk, host, path):
    answer = desk().get(path, headers={"host": host})
    assert answer.status_code == 400
    assert "You are" not in answer.text


def test_a_name_of_the_settings_is_one_of_its_own(desk):
    client = desk(hosts=("desk.clinic.example",))
    assert client.get("/", headers={"host": "Desk.Clinic.Example:443"}).status_code == 200


def test_every_answer_tells_the_browser_what_it_may_do_with_it(desk):
    client = desk()
    answers = [
        client.get("/"),
        client.get("/nowhere"),
        client.put("/"),
        client.get("/static/desk.js"),
        client.post("/"),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 405, 200, 415]
    for answer in (*answers, client.get("/", headers={"host": "evil.example"})):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


# ---------------------------------------------------------------------- forms


def test_a_form_is_taken_with_the_token_of_its_page_and_not_without(desk):
    client = desk()
    assert post(client, a="b").text == "ode sent {'a': 'b'}"
    for token in ("", "0" * 64, "é"):
        answer = post(client, token=token, a="b")
        assert answer.status_code == 403
        assert "go back, load the page again" in answer.text
    assert client.post("/", data={"a": "b"}).status_code == 403
    assert post(client, token=form_token(desk().get("/"))).status_code == 403  # of another start


def test_a_form_of_another_site_is_refused_whatever_is_in_it(desk):
    client = desk()
    form = {"csrf": form_token(client.get("/"))}
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert client.post("/", data=form, headers={"sec-fetch-site": site}).status_code == status


def test_what_is_no_form_or_too_long_a_one_is_refused(desk):
    client = desk()
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/", json={}).status_code == 415
    assert client.post("/", files={"a": b"b"}).status_code == 415
    assert client.post("/", content=b"a=" + b"b" * LARGEST_FORM, headers=kind).status_code == 413
    assert client.post("/", content=b"a=%ff", headers=kind).status_code == 400
    assert client.post("/", content=b"&".join([b"a=b"] * 200), headers=kind).status_code == 400


# ---------------------------------------------------------------------- logins


def test_whoever_has_a_token_logs_in_and_out(desk, tokens):
    client = desk(tokens=tokens)
    assert client.get("/").headers["location"] == "/login"
    assert client.head("/").status_code == 303
    assert client.post("/", data={}).status_code == 401
    assert client.get("/static/desk.css").status_code == 200
    assert client.post("/login", data={"token": TOKEN}).status_code == 403  # no form of ours
    answer = client.post("/login", data={"csrf": form_token(client.get("/login")), "token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie  # this machine alone, and no TLS
    assert TOKEN not in cookie
    assert "You are <bdi>M. Ode</bdi>" in client.get("/").text
    assert post(client, a="b").text.startswith("M. Ode sent")
    assert client.get("/logout").status_code == 405
    assert client.post("/logout", data={"csrf": "0"}).status_code == 403
    assert post(client, "/logout").headers["location"] == "/login"
    client.cookies.set("desk-8400", cookie.split("=")[1].split(";")[0])
    assert client.get("/").status_code == 303  # the session is over, not only its cookie


def test_who_logs_in_and_who_fails_to_is_kept_and_shown_and_no_token(desk, tokens, tmp_path):
    file = tmp_path / "folder" / "desk-logins.db"
    client = desk(tokens=tokens, logins_file=file, client=("10.0.0.9", 5000))
    assert client.get("/logins").headers["location"] == "/login"
    form = {"csrf": form_token(client.get("/login"))}
    before = datetime.now(UTC)
    client.post("/login", data=form | {"token": "<b>a guess of a token"})
    client.post("/login", data=form | {"token": TOKEN})
    last, first = LoginRecord(file).all()
    assert [(one.who, one.address, one.succeeded) for one in (first, last)] == [
        ("", "10.0.0.9", False),
        ("M. Ode", "10.0.0.9", True),
    ]
    assert before <= first.at <= last.at <= datetime.now(UTC)
    text = client.get("/logins").text
    assert text.index(">logged in<") < text.index(">wrong token<")
    assert "10.0.0.9" in text
    assert 'href="/logins"' in client.get("/").text
    assert post(client, "/logins").status_code == 405
    assert file.stat().st_mode & 0o077 == 0
    kept = b"".join(each.read_bytes() for each in file.parent.iterdir())
    assert b"a guess" not in kept
    assert TOKEN.encode() not in kept


def test_failures_are_kept_in_number_and_drive_no_success_out(tmp_path, monkeypatch):
    monkeypatch.setattr("dlfd_fleet.desk.login_record.MOST_KEPT", 3)
    record = LoginRecord(tmp_path / "logins.db")
    for who in ("ode", *[""] * 5, "nia"):
        record.note(who, "10.0.0.9")
    assert [one.who for one in LoginRecord(tmp_path / "logins.db").all()] == ["nia", "", "", "", "ode"]


@pytest.fixture
def logins(tmp_path, monkeypatch):
    """A record that has dropped two failures, with its file and its key."""
    monkeypatch.setattr("dlfd_fleet.desk.login_record.MOST_KEPT", 3)
    record = LoginRecord(tmp_path / LOGINS_FILE)
    for who in ("ode", *[""] * 5, "nia"):
        record.note(who, "10.0.0.9")
    return record


def change(file, statements):
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(statements)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM login WHERE number = 7", "it holds 4 rows, and its seal says 5"),
        ("DELETE FROM login WHERE number = 5", "it holds 4 rows, and its seal says 5"),
        ("DELETE FROM login", "it holds 0 rows, and its seal says 5"),
        ("UPDATE login SET who = 'ode' WHERE number = 7", "row 7 of its logins is not as sealed"),
        ("UPDATE login SET at = '2026-01-01T00:00:00+00:00' WHERE number = 7", "row 7 of its logins is not as sealed"),
        ("UPDATE login SET succeeded = 1, who = 'x' WHERE number = 5", "row 5 of its logins is not as sealed"),
        ("UPDATE login SET number = 9 WHERE number = 7", "row 9 of its logins is not as sealed"),
        (
            "INSERT INTO login SELECT 8, at, who, address, succeeded, seal FROM login WHERE number = 7",
            "row 8 of its log",
        ),
        ("UPDATE logins SET rows = 4", "was tampered with, or is not sealed with the key beside it"),
        ("DELETE FROM logins", "was tampered with, or is not sealed with the key beside it"),
        ("DROP TABLE logins", "is not sealed"),
        ("DROP TABLE logins; DROP TABLE login", "is gone"),
    ],
)
def test_whoever_changes_logins_without_the_key_is_seen_and_a_new_login_does_not_cover_it(
    logins, tmp_path, statement, said
):
    assert len(logins.all()) == 5
    change(tmp_path / LOGINS_FILE, statement)
    with pytest.raises(ConfigurationError, match=said):
        logins.all()
    with suppress(ConfigurationError):
        LoginRecord(tmp_path / LOGINS_FILE).note("mia", "10.0.0.7")
    with pytest.raises(ConfigurationError):
        LoginRecord(tmp_path / LOGINS_FILE).all()
    done = run_command("desk", "--logins", "--site", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_a_record_of_logins_without_its_key_or_the_other_way_round_is_not_begun_anew(logins, tmp_path):
    file, key = tmp_path / LOGINS_FILE, (tmp_path / LOGINS_FILE).with_suffix(".key")
    assert key.stat().st_mode & 0o777 == 0o600
    own = key.read_text()
    for text, said in (("00" * 32, "not sealed with the key beside it"), ("no key", "cannot be read"), (own, "")):
        key.write_text(text)
        if said:
            refused(LoginRecord(file), said)
    assert len(LoginRecord(file).all()) == 5
    key.rename(tmp_path / "elsewhere")
    refused(LoginRecord(file), "which seals desk-logins.db, is gone")
    (tmp_path / "elsewhere").rename(key)
    for part in tmp_path.glob(f"{LOGINS_FILE}*"):
        part.unlink()
    refused(LoginRecord(file), "is gone, and desk-logins.key, which sealed it, is still there")
    assert not file.exists()


def refused(record, said):
    for act in (record.all, lambda: record.note("mia", "10.0.0.7")):
        with pytest.raises(ConfigurationError, match=said):
            act()


def test_a_record_of_an_earlier_release_is_refused_and_not_sealed_as_it_is(tmp_path):
    """Else whoever takes the seals away would have them made again."""
    file = tmp_path / LOGINS_FILE
    change(file, "CREATE TABLE login (number INTEGER PRIMARY KEY, at, who, address, succeeded)")
    refused(LoginRecord(file), "is not sealed: an earlier release wrote it")
    assert not file.with_suffix(".key").exists()


def test_the_check_of_a_sites_ledger_checks_its_logins_too(tmp_path):
    site = make_clinic(tmp_path / "clinic")
    assert "Logins" not in run_command("site", "status", site).stdout
    LoginRecord(site / LOGINS_FILE).note("nia", "10.0.0.9")
    said = "Logins at the desk that are kept: 1. They are as their seals say."
    assert said in run_command("site", "status", site).stdout
    change(site / LOGINS_FILE, "DELETE FROM login")
    done = run_command("site", "status", site)
    assert done.returncode == 2
    assert "The record of logins" in done.stderr
    assert "was tampered with" in done.stderr


def test_nobody_is_let_in_whose_login_cannot_be_kept(desk, tokens, tmp_path):
    (tmp_path / "file").write_text("no folder")
    client = desk(tokens=tokens, logins_file=tmp_path / "file" / "logins.db")
    answer = client.post("/login", data={"csrf": form_token(client.get("/login")), "token": TOKEN})
    assert answer.status_code == 500
    assert "Cannot write" in answer.text
    assert "set-cookie" not in answer.headers
    (tmp_path / "damaged.db").write_bytes(b"no database" * 1000)
    client = desk(tokens=tokens, logins_file=tmp_path / "damaged.db")
    answer = client.post("/login", data={"csrf": form_token(client.get("/login")), "token": TOKEN})
    assert "is damaged" in answer.text


def test_where_nobody_logs_in_there_is_no_page_of_logins(desk, tmp_path):
    client = desk(logins_file=tmp_path / "logins.db")
    assert client.get("/logins").status_code == 404
    assert "/logins" not in client.get("/").text
    assert not (tmp_path / "logins.db").exists()


@pytest.mark.parametrize("at", ["site", "coordinator"])
def test_the_command_lists_logins(tmp_path, at):
    where = ("--site", tmp_path) if at == "site" else ("--set", f"state_folder={tmp_path}")
    said = run_command("desk", "--logins", *where)
    assert (said.returncode, said.stdout.partition(":")[0]) == (0, "Nobody has logged in here yet")
    record = LoginRecord((tmp_path if at == "site" else tmp_path / "coordinator") / LOGINS_FILE)
    record.note("M. Ode", "10.0.0.9")
    record.note("", "10.0.0.8")
    lines = run_command("desk", "--logins", *where).stdout.splitlines()
    assert lines[1].endswith("10.0.0.8 wrong token")
    assert lines[2].split()[2:] == ["M.", "Ode", "10.0.0.9", "logged", "in"]


def test_the_cookie_is_for_tls_alone_unless_it_stays_on_this_machine(desk, tokens):
    client = desk("https://desk.example", tokens=tokens, hosts=("desk.example",))
    answer = client.post("/login", data={"csrf": form_token(client.get("/login")), "token": TOKEN})
    assert "Secure" in answer.headers["set-cookie"]


def test_a_form_of_one_session_is_none_of_another(desk, tokens):
    one, other = desk(tokens=tokens), desk(tokens=tokens)
    for client, token in ((one, TOKEN), (other, OTHER)):
        client.post("/login", data={"csrf": form_token(client.get("/login")), "token": token})
    assert post(other, token=form_token(one.get("/"))).status_code == 403


def test_who_guesses_must_wait_and_others_need_not(desk, tokens):
    clock = iter(range(1000))
    logins = Logins(tokens, clock=lambda: float(next(clock)))
    for _ in range(MOST_FAILURES):
        assert not logins.must_wait("10.0.0.1")
        assert logins.log_in("10.0.0.1", "a guess") is None
    assert logins.must_wait("10.0.0.1")
    assert not logins.must_wait("10.0.0.2")
    later = Logins(tokens, clock=lambda: 2 * FAILURE_SECONDS, _failures=logins._failures)
    assert not later.must_wait("10.0.0.1")
    client = desk(tokens=tokens)
    form = {"csrf": form_token(client.get("/login"))}
    for _ in range(MOST_FAILURES):
        assert client.post("/login", data=form | {"token": "a guess"}).status_code == 401
    answer = client.post("/login", data=form | {"token": TOKEN})
    assert answer.status_code == 429
    assert "wait five minutes" in answer.text


def test_a_session_ends_by_itself_and_with_the_token(tokens):
    now = [0.0]
    logins = Logins(tokens, clock=lambda: now[0])
    session = logins.log_in("here", TOKEN)
    assert logins.who(session) == "M. Ode"
    assert logins.who("no session") is None
    now[0] = SESSION_SECONDS + 1
    assert logins.who(session) is None
    session = logins.log_in("here", TOKEN)
    tokens.write_text(f"Nia {OTHER}\n")
    assert logins.who(session) is None


@pytest.mark.parametrize(
    ("text", "mode", "sentence"),
    [
        (f"Ode {TOKEN}", 0o644, "which lets people in; run `chmod 600`"),
        ("Ode short", 0o600, "line 1, is no name and token"),
        (TOKEN, 0o600, "line 1, is no name and token"),
        ("# nobody", 0o600, "lets nobody in"),
        (None, 0o600, "cannot be read: No such file"),
    ],
)
def test_a_file_of_tokens_that_cannot_be_used_is_a_sentence(tmp_path, text, mode, sentence):
    file = tmp_path / "tokens"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(ConfigurationError, match=sentence):
        read_tokens(file)


def test_a_file_of_tokens_that_went_away_lets_nobody_in(desk, tokens):
    client = desk(tokens=tokens)
    client.post("/login", data={"csrf": form_token(client.get("/login")), "token": TOKEN})
    tokens.unlink()
    answer = client.get("/")
    assert answer.status_code == 500
    assert "(desk.tokens) cannot be read" in answer.text
    assert "You are" not in answer.text


# ---------------------------------------------------------------------- a proxy


def test_a_proxy_says_who_asks_and_nobody_else_may(desk):
    settings = {"proxy": "10.0.0.5", "hosts": ("desk.example",), "host": "0.0.0.0", "base": "http://desk.example"}
    named = {"x-forwarded-user": "Nia"}
    assert "You are <bdi>Nia</bdi>" in desk(client=("10.0.0.5", 1), **settings).get("/", headers=named).text
    for client, headers in (
        (("10.0.0.6", 1), named),
        (("10.0.0.5", 1), {}),
        (("10.0.0.5", 1), {"x-forwarded-user": " "}),
    ):
        answer = desk(client=client, **settings).get("/", headers=headers)
        assert answer.status_code == 401
        assert "Nia" not in answer.text
    one = desk(client=("10.0.0.5", 1), **settings)
    assert one.get("/", headers=[("x-forwarded-user", "Nia"), ("x-forwarded-user", "Ode")]).status_code == 401
    assert one.get("/", headers={"x-forwarded-user": "x" * 201}).status_code == 401
    assert "You are <bdi>Zoë</bdi>" in one.get("/", headers={"x-forwarded-user": "Zoë".encode()}).text
    other = desk(client=("10.0.0.5", 1), user_header="X-User", **settings)
    assert other.get("/", headers=named).status_code == 401
    assert other.get("/", headers={"x-user": "Nia"}).status_code == 200


def test_a_form_of_one_user_of_a_proxy_is_none_of_another(desk):
    client = desk(proxy="127.0.0.1")
    token = form_token(client.get("/", headers={"x-forwarded-user": "Nia"}))
    sent = [client.post("/", data={"csrf": token}, headers={"x-forwarded-user": name}) for name in ("Nia", "Ode")]
    assert [answer.status_code for answer in sent] == [200, 403]


# ---------------------------------------------------------------------- where it listens


@pytest.mark.parametrize(
    ("host", "over_tls", "settings", "sentence"),
    [
        ("0.0.0.0", True, {}, "everybody in the network would have this desk"),
        ("10.0.0.1", True, {}, "everybody in the network would have this desk"),
        ("desk.example", True, {}, "everybody in the network would have this desk"),
        ("10.0.0.1", False, {"tokens": "tokens"}, "a token would cross the network in the clear"),
        ("0.0.0.0", True, {"tokens": "tokens"}, "has no name of its own: set desk.hosts"),
        ("127.0.0.1", False, {"tokens": "tokens", "proxy": "10.0.0.5"}, "two ways to know who asks"),
    ],
)
def test_an_address_that_would_be_open_is_refused(host, over_tls, settings, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        rules_of(DeskSettings(**settings), host, "ode", over_tls=over_tls)


def test_another_address_of_this_machine_is_a_name_of_its_own():
    assert "127.0.0.2" in rules_of(DeskSettings(), "127.0.0.2", "ode", over_tls=False).hosts


def test_another_address_answers_under_its_own_name_alone():
    rules = rules_of(DeskSettings(tokens="tokens"), "10.0.0.1", "ode", over_tls=True)
    assert rules.hosts == {"10.0.0.1"}


def test_a_proxy_is_an_address():
    with pytest.raises(ValueError, match="is no IP address"):
        DeskSettings(proxy="proxy.example")


def test_a_name_in_the_head_of_a_page_is_shown_and_not_obeyed(desk):
    client = desk(proxy="127.0.0.1")
    text = client.get("/", headers={"x-forwarded-user": "<b>Nia</b>"}).text
    assert "&lt;b&gt;Nia&lt;/b&gt;" in text
    assert not re.search(r"<b>Nia|<script(?! src=)|\son\w+=|javascript:", text)
