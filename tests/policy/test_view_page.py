"""The page of `cadence view` in a browser: what it shows, by which keys, and whom it asks."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from data.checks.finding import warning
from data.store import EpisodeStore
from data.types import Contract, Field
from policy.serving.endpoints import Page
from policy.view_page import page_of
from policy.view_run import RunFacts
from policy.view_server import VIEW_PAGE, Site, ViewServer
from policy.view_source import Chunks, Episodes
from tests.policy.browser import Tab, opened

CONTRACT = Contract(
    {"state": Field((2,), unit=("m", "rad")), "camera": Field((16, 16, 3), dtype="uint8")},
    Field((1,), unit="m"),
    0.1,
    task="push it",
)
READY = "about && chosen.number >= 0 && about.cameras.length === 1"
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}


@pytest.fixture(scope="module")
def tab(tmp_path_factory) -> Iterator[Tab]:
    with opened(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


def make_store(path: Path, n: int = 4, contract: Contract = CONTRACT, **metadata) -> EpisodeStore:
    store = EpisodeStore.create(path, contract)
    for index in range(n):
        steps = np.arange(20 + index, dtype=np.float32)
        camera = (12 * steps)[:, None, None, None] * np.ones((1, 16, 16, 3))
        store.append(
            {
                "state": np.stack([steps + 100 * index, np.sin(steps)], axis=1),
                "camera": camera.astype(np.uint8),
                "action": steps[:, None] / 8,
            },
            success=index % 2 == 0,
            **metadata,
        )
    return store


def about_of(episodes: Episodes, facts: RunFacts | None = None, **more) -> dict:
    run = (facts or RunFacts()).to_json()
    return {**episodes.about(), "title": "t", "path": "p", "first_episode": 0, "run": run, **more}


@contextmanager
def shown(tab: Tab, store: EpisodeStore, *, findings=(), chunks=None, facts=None, **about):
    """The page of a store in the tab; nobody else is asked, and no error is logged."""
    episodes = Episodes(store, chunks)
    told = {"state": "ready", "findings": [each.to_json() for each in findings]}
    facts = facts or RunFacts()
    site = Site(episodes, about_of(episodes, facts, **about), lambda: told, tuple(facts.media))
    with ViewServer(site) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            tab.resize(*SIZES["desktop"])
            tab.forget()
            tab.open(server.url, READY)
            tab.wait("!byId('findings').hidden")
            yield server
            asked = {url for url in tab.urls.values() if not url.startswith("data:")}
            assert all(url.startswith(server.url) for url in asked), asked
            assert tab.errors == []
            tab.call("Page.navigate", url="about:blank")
        finally:
            server.shutdown()
            thread.join()


def at(tab: Tab) -> tuple[int, int]:
    return tab.evaluate("chosen.number"), tab.evaluate("step")


def test_episodes_pictures_numbers_and_metadata_are_shown(tab, tmp_path):
    with shown(tab, make_store(tmp_path / "s.zarr", operator="anna")):
        assert tab.text("#sums") == "4 episodes, 86 steps at 10 Hz: push it"
        listed = tab.evaluate("[...byId('list').children].map((each) => each.textContent.trim())")
        assert listed == ["020success", "121failed", "222success", "323failed"]
        assert tab.text("#title") == "Episode 0: 20 steps, 2.0 s"
        assert tab.text("#metadata") == "operatorannasuccesstrue"
        charts = "[...document.querySelectorAll('.charts p')].map((each) => each.textContent)"
        assert tab.evaluate(charts) == ["0 [m] 0", "0 [m] 0", "1 [rad] 0"]  # The action first.
        tab.evaluate("moveTo(4)")
        assert tab.evaluate(charts) == ["0 [m] 0.5000", "0 [m] 4", "1 [rad] -0.7568"]
        assert tab.text("#at") == "4 / 19, 0.40 s"
        assert tab.evaluate("document.querySelector('.strip i').style.left").startswith(
            "calc(21.05"
        )
        # The picture of the step, as it was recorded: 12 per step.
        colour = """(() => {
            const picture = document.querySelector(".picture");
            const context = document.createElement("canvas").getContext("2d");
            context.drawImage(picture, 0, 0);
            return picture.src.endsWith("/frame/0/4/0") && picture.complete
                && picture.naturalWidth === 16 && context.getImageData(5, 5, 1, 1).data[0];
        })()"""
        tab.wait(f"({colour}) === 48")


def test_keys_and_clicks_lead_through_steps_and_episodes(tab, tmp_path):
    with shown(tab, make_store(tmp_path / "s.zarr")):
        for key, shift, place in (
            ("ArrowRight", False, (0, 1)),
            ("ArrowRight", True, (0, 11)),
            ("ArrowLeft", False, (0, 10)),
            ("ArrowRight", True, (0, 19)),
            ("ArrowRight", False, (0, 19)),
            ("ArrowLeft", True, (0, 9)),
            ("End", False, (0, 19)),
            ("Home", False, (0, 0)),
            ("ArrowLeft", False, (0, 0)),
        ):
            tab.key(key, shift=shift)
            assert at(tab) == place
        tab.key("ArrowUp")
        tab.key("ArrowDown")
        tab.wait("chosen.number === 1 && byId('title').textContent.startsWith('Episode 1')")
        tab.evaluate("byId('list').children[3].click()")
        tab.wait("chosen.number === 3")
        assert tab.evaluate("document.querySelectorAll('#list .chosen').length") == 1
        tab.key("ArrowDown")
        tab.evaluate("byId('number').value = 99; byId('number').dispatchEvent(new Event('change'))")
        tab.wait("byId('problem').textContent === 'there is no episode 99'")
        assert at(tab)[0] == 3
        tab.key(" ")
        tab.wait("step === chosen.length - 1 && playing === null")  # It played to the end.
        tab.evaluate(
            """(() => {
                const box = document.querySelector("#fields canvas").getBoundingClientRect();
                const middle = {clientX: box.left + box.width / 2, clientY: box.top, bubbles: true};
                const canvas = document.querySelector("#fields canvas");
                canvas.dispatchEvent(new MouseEvent("click", middle));
            })()"""
        )
        assert tab.evaluate("step") == 11


def has_colour(selector: str, name: str) -> str:
    return f"""(() => {{
        const canvas = document.querySelector({json.dumps(selector)});
        const probe = document.createElement("canvas").getContext("2d");
        probe.fillStyle = colours[{json.dumps(name)}];
        probe.fillRect(0, 0, 1, 1);
        const wanted = probe.getImageData(0, 0, 1, 1).data;
        const {{data}} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        for (let i = 0; i < data.length; i += 4)
            if (data[i + 3] > 200 && [0, 1, 2].every((k) => Math.abs(data[i + k] - wanted[k]) < 24))
                return true;
        return false;
    }})()"""


def test_chunks_are_laid_over_what_was_sent(tab, tmp_path):
    chunks = {0: Chunks([0, 8], [np.full((12, 1), 1.5), np.full((12, 1), np.nan)])}
    with shown(tab, make_store(tmp_path / "s.zarr"), chunks=chunks):
        assert tab.text("#fields h2") == "action: sent, planned in 2 chunks"
        for name in ("first", "second", "bad"):
            tab.wait(has_colour("#fields canvas", name))
        tab.evaluate("choose(1)")
        tab.wait("chosen.number === 1")
        assert tab.text("#fields h2") == "action"
        assert not tab.evaluate(has_colour("#fields canvas", "second"))


def test_findings_lead_to_their_episodes(tab, tmp_path):
    found = [warning("S019", "it jumps", "look", [2]), warning("S009", "still", "leave it")]
    with shown(tab, make_store(tmp_path / "s.zarr"), findings=found):
        tab.wait("byId('list').children[2].textContent.includes('S019')")
        assert "S019" not in tab.evaluate("byId('list').children[1].textContent")
        items = tab.evaluate(
            "[...document.querySelectorAll('#findings li')].map((e) => e.innerText)"
        )
        assert len(items) == 2
        assert "S019 warning it jumps" in items[0]
        assert "fix: look" in items[0]
        tab.evaluate("document.querySelector('#findings li button').click()")
        tab.wait("chosen.number === 2")
    with shown(tab, make_store(tmp_path / "t.zarr")):
        assert tab.text("#doctor") == "nothing wrong"


def test_a_long_list_is_read_in_parts(tab, tmp_path):
    contract = Contract({"camera": CONTRACT.observation["camera"]}, CONTRACT.action, 0.1)
    store = EpisodeStore.create(tmp_path / "s.zarr", contract)
    for _ in range(9):
        store.append({"camera": np.zeros((2, 16, 16, 3), "u1"), "action": np.zeros((2, 1))})
    with shown(tab, store):
        tab.evaluate("choose(8)")
        tab.wait("chosen.number === 8")
    text = VIEW_PAGE.read_text()
    assert text.count("LISTED = 200") == 1
    with shown(tab, store) as server:
        server.page = Page(text.replace("LISTED = 200", "LISTED = 4").encode(), "")
        tab.open(server.url, READY)
        assert tab.evaluate("byId('list').children.length") == 4
        for script, first in (
            ("choose(5)", 4),
            ("choose(8)", 8),
            ("byId('earlier').click()", 4),
            ("byId('earlier').click()", 0),
            ("byId('later').click()", 4),
        ):
            tab.evaluate(script)
            tab.wait(f"first === {first} && byId('list').firstChild.dataset.number === '{first}'")
        assert tab.evaluate("chosen.number") == 8
        tab.key("ArrowUp")
        tab.wait("chosen.number === 7")


def test_hostile_texts_are_shown_as_texts(tab, tmp_path):
    evil = "<img src=http://127.0.0.1:9/x onerror=window.hit=1><script>window.hit=1</script>"
    contract = Contract(
        {evil: Field((1,), unit=evil), "camera": CONTRACT.observation["camera"]},
        CONTRACT.action,
        0.1,
        task=evil,
    )
    store = EpisodeStore.create(tmp_path / "s.zarr", contract)
    store.append(
        {
            evil: np.zeros((4, 1)),
            "camera": np.zeros((4, 16, 16, 3), "u1"),
            "action": np.ones((4, 1)),
        },
        operator=evil,
        **{evil: {"a": evil}, "__proto__": evil, "success": evil},
    )
    facts = RunFacts(
        facts={evil: evil, "__proto__": 1},
        table=[{evil: evil}],
        curves={evil: ([1.0], [2.0])},
        problems=[evil],
    )
    findings = [warning(evil, evil, evil, [0])]
    with shown(tab, store, facts=facts, findings=findings, path=evil, title=evil):
        assert tab.text("#path") == evil
        assert evil in tab.text("#sums")
        for selector in ("#metadata", "#fields", "#run", "#table", "#curves", "#findings"):
            assert evil in tab.text(selector), selector
        assert tab.evaluate("document.scripts.length") == 1
        count = "document.querySelectorAll('img:not(.picture):not(.strip img), iframe').length"
        assert tab.evaluate(count) == 0
        assert tab.evaluate("window.hit === undefined")
        # Even what got in would be kept from running, and from calling elsewhere.
        tab.evaluate(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(evil)})")
        tab.wait("window.hit === undefined")
        tab.evaluate("fetch('http://127.0.0.1:9/').catch(() => 1)")
        assert tab.errors
        assert all("Content Security Policy" in error for error in tab.errors)
        tab.errors.clear()


def test_a_file_of_its_own_asks_nobody(tab, tmp_path):
    store = make_store(tmp_path / "s.zarr", operator="</script><script>window.hit=1</script>")
    episodes = Episodes(store)
    findings = {"state": "ready", "findings": [warning("S019", "x", "y", [2]).to_json()]}
    n_done = []
    text = page_of(
        episodes,
        about_of(episodes),
        findings,
        episodes=[2, 0],
        most_pictures=8,
        progress=lambda: n_done.append(1),
    )
    assert len(n_done) == 2
    assert "Content-Security-Policy\" content=\"default-src 'none'" in text
    file = tmp_path / "page.html"
    file.write_text(text)
    tab.resize(*SIZES["desktop"])
    tab.forget()
    tab.open(file.as_uri(), READY)
    assert tab.evaluate("chosen.number") == 2
    tab.key("ArrowDown")
    tab.wait("chosen.number === 0")
    tab.evaluate("moveTo(7)")
    # 20 steps, at most 8 pictures: every third is kept, and the last before the step is shown.
    colour = """(() => {
        const picture = document.querySelector(".picture");
        const context = document.createElement("canvas").getContext("2d");
        context.drawImage(picture, 0, 0);
        return picture.complete && context.getImageData(5, 5, 1, 1).data[0];
    })()"""
    tab.wait(f"{colour} === {12 * 6}")
    assert tab.evaluate("valueAt(7, 0)") == 7
    assert "window.hit=1" in tab.text("#metadata")
    assert tab.evaluate("window.hit === undefined")
    assert tab.text("#findings li b") == "S019 warning "
    assert [url for url in tab.urls.values() if not url.startswith(("data:", file.as_uri()))] == []
    assert tab.errors == []


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_it_fits_the_screen_and_follows_the_preferred_colours(tab, tmp_path, size):
    with shown(tab, make_store(tmp_path / "s.zarr", note="x" * 300)):
        ground = "getComputedStyle(document.body).backgroundColor"
        tab.resize(*size, scheme="light")
        tab.wait("innerWidth > 0")
        light, ink = tab.evaluate(ground), tab.evaluate("colours.ink")
        assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
        tab.resize(*size, scheme="dark")
        tab.wait(f"colours.ink !== {json.dumps(ink)}")
        assert tab.evaluate(ground) != light


def test_an_end_of_the_server_is_said(tab, tmp_path):
    cut = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    with shown(tab, make_store(tmp_path / "s.zarr")):
        tab.call("Network.emulateNetworkConditions", offline=True, **cut)
        tab.key("ArrowDown")
        tab.wait("byId('problem').textContent === 'cadence view has ended: start it again'")
        tab.call("Network.emulateNetworkConditions", offline=False, **cut)
        tab.key("ArrowDown")
        tab.wait("byId('problem').textContent === '' && chosen.number === 1")
        tab.errors.clear()


def test_it_holds_nothing_but_inline_blocks():
    text = VIEW_PAGE.read_text()
    assert re.findall(r"<[^>]+\s(?:style|on\w+|src|srcdoc|action)\s*=", text) == []
    assert re.findall(r"https?://|//[a-z]+\.", text) == []
    assert re.findall(r"<link[^>]*>", text) == ['<link rel="icon" href="data:,">']
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text) == []
    assert Page.read(VIEW_PAGE).policy.count("sha256-") == 2
