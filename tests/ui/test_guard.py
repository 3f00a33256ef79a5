"""Who gets in: the link once, the cookie then, our own host and origin only."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lowcomm.ui.app import guarded
from lowcomm.ui.desk import Desk
from lowcomm.ui.guard import COOKIE, Keys
from tests.support.asgi import TestClient

PORT = 4567
ORIGIN = f"http://127.0.0.1:{PORT}"


class Door:
    """A guarded application and its client, without a cookie yet."""

    def __init__(self, root: Path) -> None:
        self.keys = Keys(port=PORT)
        self.links = [self.keys.link]
        desk = Desk(root=root, base=self.keys.base)
        app = guarded(desk, self.keys, lambda: self.links.append(self.keys.link))
        self.client = TestClient(app, base_url=ORIGIN, follow_redirects=False)

    def enter(self) -> TestClient:
        assert self.client.get(f"/?{urlsplit(self.links[-1]).query}").status_code == 200
        return self.client


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


def test_without_the_link_there_is_nothing(door: Door) -> None:
    base = door.keys.base
    for path in (
        "/",
        base,
        f"{base}new",
        f"{base}assets/ui.css",
        "/?token=",
        f"/?token={door.keys.cookie}",
        "/favicon.ico",
    ):
        answer = door.client.get(path)
        assert answer.status_code == 401 and door.keys.token not in answer.text and door.keys.cookie not in answer.text
        assert "set-cookie" not in answer.headers
    assert door.client.post(f"{base}start", json={}, headers={"origin": ORIGIN}).status_code == 401


def test_the_link_works_once_and_gives_a_cookie_that_scripts_and_other_sites_do_not_have(door: Door) -> None:
    query = urlsplit(door.links[0]).query
    answer = door.client.get(f"/?{query}")
    given = answer.headers["set-cookie"]
    assert {f"Path={door.keys.base}", "HttpOnly", "SameSite=strict"} <= set(given.split("; "))
    assert door.keys.cookie not in answer.text
    assert f"url={door.keys.base}" in answer.text
    assert door.client.get(door.keys.base).status_code == 200
    door.client.cookies.clear()
    assert door.client.get(f"/?{query}").status_code == 401
    assert len(door.links) == 2 and door.links[0] != door.links[1]
    assert door.client.get(f"/?{urlsplit(door.links[1]).query}").status_code == 200


def test_a_prefetch_does_not_use_the_link_up(door: Door) -> None:
    query = urlsplit(door.links[0]).query
    assert door.client.get(f"/?{query}", headers={"sec-purpose": "prefetch;prerender"}).status_code == 403
    assert door.client.head(f"/?{query}").status_code == 401
    assert door.client.get(f"/?{query}").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", "", "[::1]:4567"])
def test_another_name_for_this_address_is_refused(door: Door, host: str) -> None:
    """DNS rebinding: a stranger's name that leads here."""
    client = door.enter()
    assert client.get(door.keys.base, headers={"host": host}).status_code == 421
    assert client.post(f"{door.keys.base}start", json={}, headers={"host": host, "origin": ORIGIN}).status_code == 421


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:1", f"https://127.0.0.1:{PORT}"]
)
def test_another_page_asks_for_nothing(door: Door, origin: str | None) -> None:
    client, base = door.enter(), door.keys.base
    headers = {} if origin is None else {"origin": origin}
    for path in ("start", "check", "intent", "runs/a/stop", "runs/a/resume"):
        assert client.post(base + path, json={}, headers=headers).status_code == 403
    assert client.get(base, headers=headers).status_code == (200 if origin is None else 403)


@pytest.mark.parametrize(
    ("site", "code"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
)
def test_what_the_browser_says_of_the_asking_site_counts(door: Door, site: str, code: int) -> None:
    assert door.enter().get(door.keys.base, headers={"sec-fetch-site": site}).status_code == code


def test_localhost_is_this_machine_too(door: Door) -> None:
    client = door.enter()
    headers = {"host": f"localhost:{PORT}", "cookie": f"a=1; {COOKIE}={door.keys.cookie}"}
    assert client.get(door.keys.base, headers=headers).status_code == 200
    assert client.post(f"{door.keys.base}check", json=[], headers={**headers, "origin": ORIGIN}).status_code == 403


def test_every_answer_forbids_what_pages_do_not_need(door: Door) -> None:
    for answer in (door.client.get("/"), door.enter().get(door.keys.base), door.client.get(f"{door.keys.base}nothing")):
        assert "default-src 'none'; script-src 'self';" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers


def test_only_what_a_page_sends_is_read(door: Door) -> None:
    client, headers = door.enter(), {"origin": ORIGIN}
    for path in ("check", "start", "intent", "runs/a/stop", "runs/a/resume"):
        url = door.keys.base + path
        assert client.get(url).status_code in (404, 405)
        form = client.post(url, data={"recipe": "diloco.py:smoke"}, headers=headers)
        text = client.post(url, content=b'{"recipe":"x"}', headers={**headers, "content-type": "text/plain"})
        large = client.post(
            url, content=b'{"a":"' + b"x" * 300_000 + b'"}', headers={**headers, "content-type": "application/json"}
        )
        for answer in (form, text, large):
            assert answer.status_code == 400 and "Fix: " in answer.json()["problem"]
