"""The page in a real browser: it loads nothing, says nothing on the console, and does what pointer and keys ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mechrep
from mechrep.viewer.assets import script_hash, viewer_script, viewer_style
from mechrep.viewer.show import View

LOOP = "The sea was calm, and the sea was calm, and the sea was calm, and the sea was calm, and the sea was calm, and"
HOSTILE = "</script><img src=x onerror=\"document.title='ran'\"><!-- &lt;b&gt; \u202e"


@pytest.fixture(scope="module")
def looked() -> View:
    return mechrep.view(mechrep.load_model("mechrep-tiny"), LOOP, ["L2N5", "surprisal", "L2H0"], layers=[1, 2, 3])


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens HTML in a fresh page; at the end nothing may have been asked for, or said on the console."""
    said, contexts = [], []

    def open_page(html: str, **options: Any) -> Any:
        contexts.append(chromium.new_context(**{"viewport": {"width": 1100, "height": 800}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda one: None if one.url.startswith(("file:", "data:")) else said.append(one.url))
        path = tmp_path / f"page{len(contexts)}.html"
        path.write_text(html, encoding="utf-8")
        page.goto(path.as_uri())
        page.wait_for_selector(".mv-token, .mv-plain")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def colour(page: Any, token: int) -> str:
    return page.eval_on_selector(f'[data-at="{token}"]', "one => getComputedStyle(one).backgroundColor")


def test_repetitions_lie_under_each_other(opened: Any, looked: View) -> None:
    page, cycle = opened(looked.to_html()), looked.cycle
    boxes = page.eval_on_selector_all(
        ".mv-token", "all => all.map(one => [one.getBoundingClientRect().left, one.getBoundingClientRect().top])"
    )
    for token in range(cycle.start, cycle.end - cycle.period):
        assert boxes[token][0] == pytest.approx(boxes[token + cycle.period][0], abs=0.6)
        assert boxes[token][1] < boxes[token + cycle.period][1]
    assert [page.text_content(f'[data-at="{i}"]') for i in range(len(looked.tokens))] == looked.tokens


def test_pointing_at_a_token_says_its_numbers_and_a_pinned_one_stays(opened: Any, looked: View) -> None:
    page, token = opened(looked.to_html()), looked.cycle.onset + 2
    page.hover(f'[data-at="{token}"]')
    page.wait_for_selector(f'.mv-here[data-at="{token}"]')
    said = page.text_content(".mv-readout")
    assert f"token {token} of" in said and "repetition 2, place 3" in said
    value = looked.values["L2N5"][token]
    assert f"L2N5 {value:.3f}".replace("-", "−") in said
    page.click(f'[data-at="{token}"]')
    page.hover('[data-at="1"]')
    page.wait_for_selector('.mv-here[data-at="1"]')
    assert page.get_attribute(f'[data-at="{token}"]', "aria-selected") == "true"
    assert page.eval_on_selector_all('[aria-selected="true"]', "all => all.length") == 1


def test_attention_of_the_pinned_token_colours_the_text(opened: Any, looked: View) -> None:
    page, token = opened(looked.to_html()), looked.cycle.onset + 1
    page.click("text=L2H0 >> nth=0")
    page.click(f'[data-at="{token}"]')
    pattern = looked.attention(2, 0)
    read = int(pattern[token, :token].argmax())
    weak = int(pattern[token, :token].argmin())

    def darkness(i: int) -> int:
        return -sum(int(part) for part in colour(page, i).removeprefix("rgb(").removesuffix(")").split(","))

    assert darkness(read) > darkness(weak)
    assert f"({read}) most" in page.text_content(".mv-readout")


def test_keys_move_pin_and_let_go(opened: Any, looked: View) -> None:
    page, cycle = opened(looked.to_html()), looked.cycle

    def here() -> int:
        page.wait_for_timeout(60)
        return int(page.get_attribute(".mv-here", "data-at"))

    page.focus(".mv-text")
    start = here()
    page.keyboard.press("ArrowRight")
    assert here() == start + 1
    page.keyboard.press("ArrowDown")
    assert here() == start + 1 + cycle.period
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert here() == start
    page.keyboard.press("Enter")
    assert page.get_attribute(f'[data-at="{start}"]', "aria-selected") == "true"
    active = page.get_attribute(".mv-text", "aria-activedescendant")
    assert page.get_attribute(f"#{active}", "data-at") == str(start)
    page.keyboard.press("Escape")
    assert page.query_selector('[aria-selected="true"]') is None
    page.keyboard.press("Home")
    assert here() == 0
    page.keyboard.press("End")
    assert here() == len(looked.tokens) - 1


def test_the_map_says_who_reads_whom(opened: Any, looked: View) -> None:
    page = opened(looked.to_html())
    page.click('.mv-thumb:has-text("L3H1")')
    box = page.query_selector(".mv-cross").bounding_box()
    size = box["width"] / len(looked.tokens)
    query, key = 20, 9
    page.mouse.move(box["x"] + (key + 0.5) * size, box["y"] + (query + 0.5) * size)
    page.wait_for_selector(f'.mv-key[data-at="{key}"]')
    said = page.text_content(".mv-caption")
    share = looked.attention(3, 1)[query, key]
    assert f"({query}) reads" in said and f"({key}): " in said
    assert float(said.rsplit(": ", 1)[1].replace("−", "-")) == pytest.approx(share, abs=2e-3)


def test_light_and_dark_by_the_page_by_the_system_and_by_choice(opened: Any, looked: View) -> None:
    background = "one => getComputedStyle(one).backgroundColor"
    light = opened(looked.to_html(), color_scheme="light")
    dark = opened(looked.to_html(), color_scheme="dark")
    seen = [page.eval_on_selector(".mechrep-view", background) for page in (light, dark)]
    assert seen[0] != seen[1]
    page = opened(f'<body style="background: #fff">{looked.to_fragment()}</body>', color_scheme="dark")
    assert page.eval_on_selector(".mechrep-view", background) == seen[0]  # of a white page, whatever the system says
    page.click(".mv-theme")
    assert page.eval_on_selector(".mechrep-view", background) == seen[1]


@pytest.mark.parametrize("layout", ["loop", "text"])
def test_nothing_is_wider_than_a_telephone(opened: Any, looked: View, layout: str) -> None:
    page = opened(looked.to_html(), viewport={"width": 400, "height": 800})
    page.click(f"button:text-is('{layout.capitalize()}')")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.eval_on_selector(".mv-text", "one => one.scrollWidth - one.clientWidth") <= 1


def test_repetitions_are_folded_and_unfolded(opened: Any) -> None:
    view = mechrep.view(mechrep.load_model("mechrep-tiny"), "one two three, " * 12)
    page = opened(view.to_html())
    page.click("button:text-is('Text')")
    shown = page.eval_on_selector_all(".mv-token", "all => all.length")
    assert shown < len(view.tokens)
    page.click(".mv-chip")
    assert page.eval_on_selector_all(".mv-token", "all => all.length") == len(view.tokens)
    page.click("button:text-is('Fold')")
    assert page.eval_on_selector_all(".mv-token", "all => all.length") == shown


def test_hostile_texts_run_nothing(opened: Any) -> None:
    model = mechrep.load_model("mechrep-tiny")
    length = len(model.encode(HOSTILE))
    view = mechrep.view(model, HOSTILE, [{HOSTILE: np.linspace(-1, 1, length)}, "surprisal"])
    page = opened(view.to_html())
    page.hover('[data-at="5"]')
    page.wait_for_timeout(100)
    assert page.title() != "ran" and page.query_selector("img") is None
    assert page.text_content(".mv-strip button") == HOSTILE
    # A page without a script has the text, as text.
    plain = opened(f"<body>{view.to_fragment(assets=False)}</body>")
    assert "onerror" in plain.text_content(".mv-plain") and plain.query_selector("img") is None


def test_several_views_share_one_script_that_a_strict_page_allows_by_its_hash(opened: Any, looked: View) -> None:
    one, script, style = looked.to_fragment(assets=False), viewer_script(), viewer_style()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src '{script_hash()}'"
    page = opened(
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}"><style>{style}</style>'
        f'<body>{one}{one}<script type="module">{script}</script></body>'
    )
    assert page.eval_on_selector_all(".mv-text", "all => all.length") == 2
    page.click(".mv-thumb >> nth=-1")
    ids = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
    assert len(ids) == 2 * len(looked.tokens) and len(set(ids)) == len(ids)


def test_the_quantities_are_chosen_with_arrow_keys(opened: Any, looked: View) -> None:
    page = opened(looked.to_html())
    page.focus(".mv-strip button >> nth=0")
    page.keyboard.press("ArrowDown")
    assert page.eval_on_selector_all('[role="radio"]', "all => all.map(one => one.ariaChecked)") == [
        "false",
        "true",
        "false",
    ]
    assert page.evaluate("document.activeElement.textContent").startswith("surprisal")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert "L2H0" in page.text_content(".mv-legend")


def test_a_kernel_is_asked_for_the_layers_that_are_not_there(opened: Any, looked: View) -> None:
    """What anywidget does: the module's default export, a model with messages, an element."""
    model = looked.model
    view = mechrep.view(model, LOOP, ["surprisal"])
    page = opened(f"<body>{looked.to_fragment()}</body>")
    payload = view.payload() | {"layers": [0, 1, 2, 3]}
    answers = [{"layer": layer, "maps": maps} for layer, maps in view.maps_of(range(4)).items()]
    page.evaluate(
        """async ([script, payload, answers]) => {
            const module = await import("data:text/javascript," + encodeURIComponent(script));
            document.body.replaceChildren(document.createElement("main"));
            let answer;
            const model = {
                get: () => payload, on: (_, call) => { answer = call; }, off: () => {},
                send: ({layer}) => { (window.asked ??= []).push(layer); },
            };
            window.reply = () => answer(answers[window.asked.at(-1)]);
            module.default.render({model, el: document.querySelector("main")});
        }""",
        [viewer_script(), payload, answers],
    )
    for layer, key in [(0, "ArrowRight"), (1, "ArrowRight"), (2, "ArrowLeft")]:
        page.wait_for_selector(f".mv-slider:has-text('layer {layer}, reading')")
        page.evaluate("window.reply()")
        page.wait_for_selector(f".mv-thumb:has-text('L{layer}H1')")
        assert page.text_content(".mv-slider") == f"layer {layer}"
        page.focus(".mv-slider input")
        page.keyboard.press(key)
    page.wait_for_selector(".mv-thumb:has-text('L1H1')")
    assert page.evaluate("window.asked") == [0, 1, 2]
