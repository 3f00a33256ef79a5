"""The pages in a real browser: forms that check themselves, runs that are drawn, nothing that the policy stops."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from lowcomm.trainer import train
from lowcomm.ui.app import guarded
from lowcomm.ui.desk import Desk
from lowcomm.ui.guard import Keys
from lowcomm.ui.server import _listen
from tests.support import runs
from tests.support.browser import browser, needs_browser


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keys]:
    """A server in this process, with one run that is done."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    corpus = runs.write_corpus(tmp_path / "corpus")
    assert train(runs.small(corpus, Path("runs/first"), name="first", log_every=2)) == 0
    listener = _listen(0)
    keys = Keys(port=listener.getsockname()[1])
    desk = Desk(root=Path("runs"), base=keys.base)
    config = uvicorn.Config(guarded(desk, keys, lambda: None), log_level="warning", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    desk.closing = lambda: server.should_exit
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield keys
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@needs_browser
def test_pages_in_a_browser(link: Keys, tmp_path: Path) -> None:
    home = f"http://127.0.0.1:{link.port}{link.base}"
    with browser(tmp_path / "profile") as page:
        page.look(width=1280, height=900)
        page.open(link.link)
        page.wait("document.readyState === 'complete' && document.querySelector('#run-table tbody tr') !== null")
        assert page.run("location.href") == home and page.run("document.cookie") == ""
        page.run("document.querySelector('#ask input').value = '3 islands, int4'")
        page.run("document.querySelector('#ask button').click()")
        page.wait("document.querySelector('#understood a.button') !== null")
        page.run("document.querySelector('#understood a.button').click()")
        page.wait("document.body.dataset.checked === '1'")
        assert page.run("document.querySelector('[data-path=islands] input').value") == "3"
        assert "--islands 3" in page.run("document.getElementById('command').textContent")
        fields = "document.querySelector(`[data-path='%s'] %s`)"
        every, choose = fields % ("sync.every", "input"), fields % ("sync.outer", "select.choose")
        changed = "dispatchEvent(new Event('change', {bubbles: true}))"
        page.run(f"({every}.value = '0', {every}.{changed})")
        page.wait(f"!{fields % ('sync.every', 'p.problem')}.hidden")
        assert page.run("document.getElementById('start').disabled")
        page.run(f"({every}.value = '8', {choose}.value = 'HeavyBall', {choose}.{changed})")
        page.wait(f"{fields % ('sync.outer', 'input')}.value === 'HeavyBall()'")
        page.wait("!document.getElementById('start').disabled")
        page.open(f"{home}runs/first")
        page.wait("document.body.dataset.shown === 'done'")
        page.wait("document.querySelectorAll('.plot .main-svg').length >= 5")
        assert page.run("document.querySelector('#curve-0 .scatterlayer path.js-line').style.stroke").startswith("rgb")
        page.open(f"{home}compare?run=first&run=first")
        page.wait("document.querySelectorAll('.plot .main-svg').length >= 5")
        page.picture(tmp_path / "page.png", whole=False)
        assert page.console == []
        page.run("document.body.appendChild(Object.assign(document.createElement('script'), {textContent: '1'}))")
        page.wait("document.querySelector('body > script:not([src])') !== null")
        for _ in range(100):  # what the policy says comes by itself
            if page.console:
                break
            page.run("1")
        assert any("Content Security Policy" in line for line in page.console)
    assert (tmp_path / "page.png").stat().st_size > 10_000
