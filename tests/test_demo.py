"""The page of demo/ in a real browser: what it computes, what it takes, what it refuses."""

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import data
import models
from training import weights

pytestmark = pytest.mark.slow  # a browser

DEMO = Path(__file__).resolve().parent.parent / "demo"
DOG = DEMO.parent / "docs" / "pictures" / "dog.png"
FLAGS = "headless no-sandbox use-fake-device-for-media-stream use-fake-ui-for-media-stream".split()
UNTIL = "const done = arguments[0], poll = () => (%s) ? done() : setTimeout(poll, 5); poll()"
LISTEN = "window.answers = []; window.addEventListener('classified', e => answers.push(e.detail))"
ANSWER = "const {pixels: p, logits: l, maps: m} = answers.at(-1); return [[...p], [...l], [...m]]"
HAND_IN = """
const [how, content, name] = arguments, transfer = new DataTransfer();
transfer.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name));
const detail = {bubbles: true, dataTransfer: transfer, clipboardData: transfer};
document.body.dispatchEvent(new (how == "drop" ? DragEvent : ClipboardEvent)(how, detail))"""


class Page:
    """The page in the browser, and how its answers are waited for."""

    def __init__(self, browser, address):
        self.browser, self.run = browser, browser.execute_script
        self.open(address)

    def open(self, address):
        self.browser.get(address)
        self.until("!document.getElementById('result').hidden")
        self.run(LISTEN)

    def until(self, condition):
        self.browser.execute_async_script(UNTIL % condition)

    def find(self, selector):
        return self.browser.find_elements("css selector", selector)

    def wait(self, action):
        """Do `action` and wait; the error that the page shows, or pixels (3, 32, 32) uint8, logits
        (10,) and maps (10, 16, 16)."""
        self.run("answers.length = 0; document.getElementById('status').textContent = ''")
        action()
        self.until("answers.length || document.getElementById('status').textContent")
        if error := self.find("#status")[0].text:
            return error
        pixels, logits, maps = map(torch.tensor, self.run(ANSWER))
        return pixels.view(3, 32, 32).byte(), logits, maps.view(10, 16, 16)

    def hand_in(self, how, path):
        content = base64.b64encode(path.read_bytes()).decode()
        return self.wait(lambda: self.run(HAND_IN, how, content, path.name))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    reason = "needs pip install -r demo/requirements-dev.txt"
    webdriver = pytest.importorskip("selenium.webdriver", reason=reason)
    pytest.importorskip("onnxscript", reason=reason)
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not ((DEMO / "node_modules").exists() and chromium and driver):
        pytest.skip("needs npm ci in demo/, and apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    command = [sys.executable, "-u", DEMO / "serve.py", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = next(line.split()[0] for line in server.stdout if line.startswith("http://"))
            with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
                yield Page(browser, address)
                assert browser.get_log("browser") == []
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def answer():
    """uint8 pixels (3, 32, 32) -> logits (10,), by PyTorch with the released weights."""
    network, checkpoint = weights.load_network(models.RELEASED_WEIGHTS)
    classifier = weights.PixelClassifier(network, **checkpoint["normalization"]).eval()
    return lambda pixels: classifier(pixels[None])[0].detach()


def test_the_ten_give_pytorchs_logits_and_maps_that_sum_up_to_them(page, answer):
    split = data.load("sample", data.DEFAULT_DIRECTORY, "val")
    buttons = page.find("#samples button")
    assert [button.text for button in buttons] == list(data.CLASSES)
    biases = []
    for label, button in enumerate(buttons):
        pixels, logits, maps = page.wait(button.click)
        assert torch.equal(pixels, split.images[split.labels == label][0])
        torch.testing.assert_close(logits, answer(pixels), rtol=0, atol=1e-3)
        names = [bar.text for bar in page.find("#bars b")]
        assert names == [data.CLASSES[k] for k in logits.topk(3).indices]
        biases.append(logits - maps.mean((1, 2)))  # the same, whatever the picture
        torch.testing.assert_close(biases[-1], biases[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_pictures_are_read_as_predict_reads_them(page, answer, tmp_path, how):
    large = Image.open(DOG).resize((900, 640), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    large.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    large.putalpha(Image.linear_gradient("L").resize(large.size))
    large.crop((0, 0, 300, 500)).save(tmp_path / "transparent.png")
    for path in (tmp_path / "turned.jpg", tmp_path / "transparent.png"):
        pixels, logits, _ = page.hand_in(how, path)
        expected = data.read_picture(path)
        torch.testing.assert_close(pixels.int(), expected.int(), rtol=0, atol=2)
        torch.testing.assert_close(logits, answer(pixels), rtol=0, atol=1e-3)


def test_what_is_no_picture_or_too_large_gets_a_sentence(page, tmp_path):
    broken, cut, huge = (tmp_path / name for name in ("broken.jpg", "cut.png", "huge.png"))
    broken.write_bytes(b"not a picture")
    Image.effect_noise((500, 500), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:50_000])
    Image.new("1", (12_000, 9_000)).save(huge)
    assert page.hand_in("drop", broken) == "This browser cannot read that picture."
    assert page.hand_in("drop", cut) == "That picture is damaged."
    assert "too many" in page.hand_in("drop", huge)


def test_file_dialog_and_camera(page):
    for _ in range(2):  # the same file again
        pixels, _, _ = page.wait(lambda: page.find("#file")[0].send_keys(str(DOG)))
        assert torch.equal(pixels, data.read_picture(DOG))
    page.find("#camera")[0].click()
    page.until("!document.getElementById('take').disabled")
    pixels, _, _ = page.wait(page.find("#take")[0].click)
    assert pixels.float().std() > 10  # of the browser's test picture
    page.until("!document.getElementById('viewfinder').open")
    page.until("!document.getElementById('video').srcObject.active")


def test_the_keyboard_is_enough(page):
    from selenium.webdriver import ActionChains, Keys

    press = ActionChains(page.browser).send_keys
    page.open(page.browser.current_url)
    _, logits, _ = page.wait(press(Keys.TAB, Keys.TAB, Keys.ENTER).perform)
    assert page.find("#samples [aria-pressed=true]")[0].text == data.CLASSES[1]
    press = ActionChains(page.browser).send_keys
    press(*[Keys.TAB] * 12, Keys.SPACE).perform()  # eight pictures, two buttons, the second bar
    second = data.CLASSES[logits.topk(2).indices[1]]
    assert page.find("#where")[0].text == f"Evidence for {second}"


def test_it_fits_a_phone_and_follows_the_theme(page):
    page.wait(page.find("#samples button")[5].click)
    colours, folder = [], os.environ.get("SCREENSHOTS")  # where the README's picture is wanted
    for theme, width in (("light", 390), ("dark", 390), ("dark", 900), ("light", 900)):
        feature = {"name": "prefers-color-scheme", "value": theme}
        size = {"width": width, "height": 680, "deviceScaleFactor": 1.5, "mobile": width < 500}
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert page.run("return document.documentElement.scrollWidth") <= width
        colours.append(page.run("return getComputedStyle(document.body).color"))
        if folder:
            page.browser.save_screenshot(f"{folder}/{theme}-{width}.png")
    assert colours[0] == colours[3] != colours[1] == colours[2]


def test_the_time_of_a_pass(page):
    """With -s it prints the README's figure."""
    page.run(
        "answers.length = 0; for (let i = 0; i < 99; i++) document.querySelector('img').click()"
    )
    page.until("answers.length == 99")
    times = page.run("return answers.map(answer => answer.milliseconds)")
    print(f"\na pass in the browser: {sorted(times)[49]:.1f} ms, the median of {len(times)}")
    assert min(times) > 0
