"""The page on which a person watches: what it shows in a browser, and whom it talks to."""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from omegaconf import DictConfig, OmegaConf
from serving_fakes import CONTRACT, PATIENCE, TOKEN, serving, wait_until

from policy.entry import CONFIGS, compose_config
from policy.serve import settings_of
from policy.serving.client import RemotePlanner
from policy.serving.endpoints import WATCH_PAGE, Page
from policy.serving.messages import Value
from policy.settings import check_settings
from tests.policy.browser import Tab, opened

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
REPORT: dict[str, Value] = {
    "control_dt_ms": 100.0,
    "state": "active",
    "fault": "",
    "refusals": 5,
    "refused_velocity": 3,
    "refused_not_finite": 2,
    "commands": 321,
    "missed": 4,
    "held": 0,
    "period_ms": [99.5, 100.5, 101.25],
    "period_ms_p50": 100.5,
    "period_ms_p99": 123.4,
    "period_ms_max": 234.5,
    "seam_jump": [0.25, 0.5],
    "seam_jump_p50": 0.375,
    "delay_ticks": [1.0, 3.0],
    "delay_counts": [7.0, 2.0],
    "sent_ticks": [10.0, 11.0, 13.0],
    "sent_actions": [0.5, -1.5, 0.25, -1.25, 0.75, -1.75],
    "sent_seams": [11.0],
    "planned_ticks": [14.0, 15.0],
    "planned_actions": [1.5, -2.5, 1.625, -2.625],
    "planned_seams": [15.0],
}


@pytest.fixture(scope="module")
def tab(tmp_path_factory) -> Iterator[Tab]:
    with opened(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


def visit(tab: Tab, port: int) -> None:
    tab.open(f"http://127.0.0.1:{port}/", "typeof byId === 'function'")


@contextmanager
def watching(tab: Tab, **settings):
    """A server whose page is open in the tab; nobody else is asked, and no error is logged."""
    with serving(page=WATCH_PAGE, **settings) as server:
        tab.resize(*SIZES["desktop"])
        tab.forget()
        visit(tab, server.port)
        yield server
        hosts = {url.split("/")[2] for url in tab.urls.values() if not url.startswith("data:")}
        assert hosts == {f"127.0.0.1:{server.port}"}
        assert len(tab.urls) >= 2, "neither the page nor its socket was seen"
        assert tab.errors == []
        tab.call("Page.navigate", url="about:blank")


@contextmanager
def controlling(server, **settings) -> Iterator[RemotePlanner]:
    with RemotePlanner(server.address, CONTRACT, deadline=PATIENCE, **settings) as planner:
        yield planner


def reported(tab: Tab, planner: RemotePlanner, script: str, **changes: Value) -> None:
    """Report, again and again as a robot does, until something is true of the page."""
    end = time.monotonic() + PATIENCE
    while not tab.evaluate(script):
        assert time.monotonic() < end, f"{script} did not come true: {tab.text('body')}"
        planner.report(REPORT | changes)
        time.sleep(0.05)


IS_LIVE = "isLive() && isDrawn"


def test_what_is_reported_is_shown_and_what_is_not_is_no_data(tab):
    with watching(tab) as server, controlling(server) as planner:
        reported(tab, planner, IS_LIVE)
        assert tab.text("#link") == "connected: a robot is controlled"
        assert tab.text("#server") == "fake"
        assert (tab.text("#state"), tab.evaluate("byId('state').className")) == ("active",) * 2
        shown = {
            name: tab.text(f"[data-value={name}]")
            for name in ("refusals", "commands", "missed", "held", "failed", "late", "stalls")
        }
        assert shown == {
            "refusals": "5",
            "commands": "321",
            "missed": "4",
            "held": "0",
            "failed": "no data",
            "late": "no data",
            "stalls": "no data",
        }
        assert tab.text("#reasons") == "velocity3not finite2"
        assert tab.text("[data-sums=period_ms]") == " p50 100.5 p99 123.4 max 234.5"
        assert tab.text("[data-sums=seam_jump]") == " p50 0.3750 p99 no data max no data"
        assert tab.text("[data-sums=age_ms]") == "no data"
        assert tab.text("#delays_text") == "9 chunks"
        assert tab.text("#plan_text") == "tick 13 · 2 ticks planned · seam at tick 15"
        elements = tab.evaluate("[...byId('elements').children].map((each) => each.textContent)")
        assert elements == [
            "element 0 [m] sent 0.7500 planned 1.50",
            "element 1 [m] sent -1.75 planned -2.50",
        ]


def test_plans_and_curves_are_drawn_in_their_colours(tab):
    has = """(canvas, name) => {
        const probe = document.createElement("canvas").getContext("2d");
        probe.fillStyle = colours[name];
        probe.fillRect(0, 0, 1, 1);
        const wanted = probe.getImageData(0, 0, 1, 1).data;
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        for (let i = 0; i < data.length; i += 4)
            if (data[i + 3] > 200 && [0, 1, 2].every((k) => Math.abs(data[i + k] - wanted[k]) < 24))
                return true;
        return false;
    }"""

    def colours_of(selector: str) -> list[str]:
        found = f"""["first", "second", "bad"].filter(
            (name) => ({has})(document.querySelector({json.dumps(selector)}), name))"""
        return tab.evaluate(found)

    with watching(tab) as server, controlling(server) as planner:
        reported(tab, planner, IS_LIVE)
        assert colours_of("#elements canvas") == ["first", "second", "bad"]
        assert colours_of("[data-curve=period_ms]") == ["first"]
        assert colours_of("[data-curve=age_ms]") == []
        assert colours_of("#delays") == ["first"]
        odd: dict[str, Value] = {"sent_actions": [1.0], "planned_ticks": []}
        reported(tab, planner, "byId('elements').children.length === 0", **odd)
        assert tab.text("#plan_text") == "no data"


def test_a_fault_turns_the_word_and_stays_when_nobody_controls(tab):
    with watching(tab) as server, controlling(server) as planner:
        reported(tab, planner, "byId('state').className === 'active'")
        fault = {"state": "fault", "fault": "clamped too long"}
        reported(tab, planner, "byId('state').className === 'fault'", **fault)
        assert tab.text("#state") == "fault"
        assert tab.text("#fault") == "clamped too long"
        wait_until(lambda: not tab.evaluate("isLive()"))
        wait_until(lambda: tab.text("#link") == "connected: nobody controls")
        assert (tab.text("#state"), tab.evaluate("byId('state').className")) == ("fault", "past")
        assert tab.text("#fault") == "the last run ended in it: clamped too long"
        # What was known last is not shown as if it were now.
        assert tab.evaluate("byId('main').className") == "old"
        # The server keeps the last report for those who come later: it may be an old one.
        visit(tab, server.port)
        wait_until(lambda: tab.evaluate("reports") == 1)
        assert not tab.evaluate("isLive()")
        assert tab.evaluate("byId('state').className") == "past"


def test_nobody_controls_is_said_in_words(tab):
    with watching(tab):
        wait_until(lambda: tab.text("#link") == "connected: nobody controls")
        assert tab.text("#state") == "nobody controls"
        numbers = tab.evaluate(
            "[...document.querySelectorAll('[data-value], [data-sums], .note[id$=_text]')]"
            ".map((node) => node.textContent)"
        )
        assert len(numbers) == 8 + 6 + 2
        assert set(numbers) == {"no data"}


def test_hostile_texts_are_shown_as_texts_and_hostile_numbers_as_no_data(tab):
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0.2)
        url = f"http://127.0.0.1:{canary.getsockname()[1]}/x"
        evil = f"<img src={url} onerror=window.hit=1><script>window.hit=1</script>"
        hostile: dict[str, Value] = {
            "state": evil,
            "fault": evil,
            f"refused_{evil}": 1,
            "__proto__": 1,
            "refused_": evil,
            "commands": evil,
            "delay_ticks": [-1e300, 0.5, 2.0**53],
            "delay_counts": [1e300, -5.0, 1.0],
            "planned_ticks": [1e300, -1e300],
            "sent_seams": [1e300] * 1024,
        }
        with watching(tab, name=evil) as server, controlling(server) as planner:
            reported(tab, planner, IS_LIVE, **hostile)
            assert tab.text("#server") == tab.text("#state") == tab.text("#fault") == evil
            assert evil in tab.text("#reasons")
            assert tab.text("[data-value=commands]") == "no data"
            assert tab.text("#delays_text") == "no data"
            assert tab.evaluate("document.querySelectorAll('img, iframe').length") == 0
            assert tab.evaluate("document.scripts.length") == 1
            assert tab.evaluate("window.hit === undefined")
            # Even what got in would be kept from running, and from calling elsewhere.
            tab.evaluate(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(evil)})")
            wait_until(lambda: tab.evaluate("window.hit === undefined") and len(tab.errors) >= 2)
            assert all("Content Security Policy" in error for error in tab.errors)
            tab.errors.clear()
            with pytest.raises(TimeoutError):
                canary.accept()


def test_a_token_is_asked_for_and_kept_in_memory_only(tab):
    give = "byId('token').value = {!r}; document.querySelector('button').click()"
    with watching(tab, token=TOKEN) as server:
        wait_until(lambda: not tab.evaluate("byId('ask').hidden"))
        assert "token is missing" in tab.text("#link")
        tab.evaluate(give.format("0123456789abcdef-wrong"))
        wait_until(lambda: tab.text("#refusal") == "That one is wrong.")
        tab.evaluate(give.format(TOKEN))
        wait_until(lambda: tab.text("#link") == "connected: nobody controls")
        assert tab.evaluate("byId('ask').hidden")
        assert tab.evaluate("byId('token').value") == ""
        kept = "JSON.stringify([document.cookie, localStorage, sessionStorage, location.href])"
        assert TOKEN not in tab.evaluate(kept)
        with controlling(server, token=TOKEN) as planner:
            reported(tab, planner, IS_LIVE)


def test_it_connects_again_with_growing_pauses(tab):
    with serving(page=WATCH_PAGE) as server:
        port = server.port
        visit(tab, port)
        wait_until(lambda: tab.evaluate("isWelcome"))
        tab.evaluate("var pauses = new Set([pause]); setInterval(() => pauses.add(pause), 20)")
    wait_until(lambda: tab.text("#link").startswith("not connected: next attempt in"))
    wait_until(lambda: tab.evaluate("pauses.size") >= 3)
    assert tab.evaluate("[...pauses].slice(0, 3)") == [500, 1000, 2000]
    assert tab.text("#state") == "no data"
    with serving(page=WATCH_PAGE, port=port):
        wait_until(lambda: tab.text("#link") == "connected: nobody controls")
        assert tab.evaluate("pause") == 500
    tab.call("Page.navigate", url="about:blank")


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_it_fits_the_screen_and_follows_the_preferred_colours(tab, size):
    with watching(tab) as server, controlling(server) as planner:
        ground = "getComputedStyle(document.body).backgroundColor"
        tab.resize(*size, scheme="light")
        reported(tab, planner, IS_LIVE)
        light, ink = tab.evaluate(ground), tab.evaluate("colours.ink")
        assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
        tab.resize(*size, scheme="dark")
        wait_until(lambda: tab.evaluate("colours.ink") != ink)
        assert tab.evaluate(ground) != light


def test_it_holds_nothing_but_inline_blocks():
    text = WATCH_PAGE.read_text()
    assert re.findall(r"<[^>]+\s(?:style|on\w+|src|srcdoc|action)\s*=", text) == []
    assert re.findall(r"https?://|//[a-z]+\.", text) == []
    assert re.findall(r"<link[^>]*>", text) == ['<link rel="icon" href="data:,">']
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text) == []
    policy = Page.read(WATCH_PAGE).policy
    assert policy.count("sha256-") == 2
    assert "script-src 'none'" not in policy


def test_it_is_served_only_if_asked_for():
    def settings(*overrides: str) -> DictConfig:
        return compose_config("serve", ["checkpoint=there", *overrides])

    assert settings_of(settings()).page is None
    assert settings_of(settings("page=true")).page == WATCH_PAGE
    defaults = OmegaConf.load(CONFIGS / "serve.yaml")
    assert isinstance(defaults, DictConfig)
    with pytest.raises(ValueError, match="page is '/etc/passwd', it must be true or false"):
        check_settings(settings("page=/etc/passwd"), defaults)
