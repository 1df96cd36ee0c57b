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
from training import checkpoint as checkpoints

ROOT = Path(__file__).resolve().parent.parent
FLAGS = """headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking
    disable-component-update disable-sync use-fake-device-for-media-stream
    use-fake-ui-for-media-stream"""
SHOWN = "return !document.getElementById('result').hidden"
LISTEN = "window.answers = []; window.addEventListener('classified', e => answers.push(e.detail))"
ANSWER = "const {pixels: p, logits: l, maps: m} = answers.at(-1); return [[...p], [...l], [...m]]"
HAND_IN = """
const [how, content, name] = arguments, transfer = new DataTransfer();
transfer.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name));
const Type = how == "drop" ? DragEvent : ClipboardEvent, bubbles = true;
document.body.dispatchEvent(
    new Type(how, {bubbles, dataTransfer: transfer, clipboardData: transfer}));
"""


class Page:
    """The page in the browser, and how its answers are waited for."""

    def __init__(self, browser):
        self.browser, self.run = browser, browser.execute_script

    def find(self, selector):
        return self.browser.find_elements("css selector", selector)

    def until(self, script):
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.browser, 20).until(lambda _: self.run(script))

    def wait(self, action):
        """Do `action` and wait; the error that the page shows, or pixels (3, 32, 32) uint8, logits
        (10,) and maps (10, 16, 16)."""
        self.run("answers.length = 0; document.getElementById('status').textContent = ''")
        action()
        self.until("return answers.length || document.getElementById('status').textContent")
        if error := self.find("#status")[0].text:
            return error
        pixels, logits, maps = (torch.tensor(values) for values in self.run(ANSWER))
        return pixels.view(3, 32, 32).byte(), logits, maps.view(10, 16, 16)

    def hand_in(self, how, path):
        content = base64.b64encode(path.read_bytes()).decode()
        return self.wait(lambda: self.run(HAND_IN, how, content, path.name))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    reason = "needs pip install -r demo/requirements-dev.txt"
    webdriver = pytest.importorskip("selenium.webdriver", reason=reason)
    pytest.importorskip("onnxscript", reason=reason)
    if not (ROOT / "demo" / "node_modules").exists():
        pytest.skip("needs npm ci in demo/")
    options = webdriver.ChromeOptions()
    options.binary_location, driver = shutil.which("chromium") or "", shutil.which("chromedriver")
    if not (options.binary_location and driver):
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    for flag in (*FLAGS.split(), f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    command = [sys.executable, "-u", ROOT / "demo" / "serve.py", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = next(line.split()[0] for line in server.stdout if line.startswith("http://"))
            with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
                page = Page(browser)
                browser.get(address)
                page.until(SHOWN)
                page.run(LISTEN)
                yield page
                assert browser.get_log("browser") == []
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def answer():
    """uint8 pixels (3, 32, 32) -> logits (10,), by PyTorch with the released weights."""
    checkpoint = checkpoints.load_checkpoint(models.RELEASED_WEIGHTS)
    network = checkpoints.rebuild(models.build, checkpoint, models.RELEASED_WEIGHTS).eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in checkpoint["normalization"].values())
    return lambda pixels: network(data.normalize(pixels[None], mean, std, torch.float32))[
        0
    ].detach()


def test_the_ten_give_pytorchs_logits_and_maps_that_sum_up_to_them(page, answer):
    split = data.load("sample", ROOT, "val")
    buttons = page.find("#samples button")
    assert [button.text for button in buttons] == list(data.CLASSES)
    biases = []
    for label, button in enumerate(buttons):
        pixels, logits, maps = page.wait(button.click)
        assert torch.equal(pixels, split.images[split.labels == label][0])
        torch.testing.assert_close(logits, answer(pixels), rtol=0, atol=1e-3)
        biases.append(logits - maps.mean((1, 2)))
        names = [bar.text for bar in page.find("#bars b")]
        assert names == [data.CLASSES[k] for k in logits.topk(3).indices]
    for bias in biases:  # the same, whatever the picture
        torch.testing.assert_close(bias, biases[0], rtol=0, atol=1e-3)


@pytest.fixture
def pictures(tmp_path):
    """A photograph turned by its EXIF orientation, and a drawing that is transparent."""
    image = data.load("sample", ROOT, "val").images[0].permute(1, 2, 0).numpy()
    large = Image.fromarray(image).resize((900, 640), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    large.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    large.putalpha(Image.linear_gradient("L").resize(large.size))
    large.crop((0, 0, 300, 500)).save(tmp_path / "transparent.png")
    return tmp_path


@pytest.mark.parametrize("name", ["turned.jpg", "transparent.png"])
@pytest.mark.parametrize("how", ["drop", "paste"])
def test_pictures_are_read_as_predict_reads_them(page, answer, pictures, name, how):
    pixels, logits, _ = page.hand_in(how, pictures / name)
    expected = data.read_picture(pictures / name)
    torch.testing.assert_close(pixels.int(), expected.int(), rtol=0, atol=2)
    torch.testing.assert_close(logits, answer(pixels), rtol=0, atol=1e-3)


def test_what_is_no_picture_or_too_large_gets_a_sentence(page, tmp_path):
    broken, cut, huge = (tmp_path / name for name in ("broken.jpg", "cut.png", "huge.png"))
    broken.write_bytes(b"not a picture")
    Image.effect_noise((500, 500), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:50_000])
    Image.new("1", (12_000, 9_000)).save(huge)
    assert page.hand_in("drop", broken) == "That is no picture that this browser can read."
    assert page.hand_in("drop", cut) == "That picture is damaged."
    assert "too many" in page.hand_in("drop", huge)


def test_file_dialog_and_camera(page, pictures):
    path = pictures / "turned.jpg"
    expected, _, _ = page.hand_in("drop", path)
    for _ in range(2):  # the same file again
        pixels, _, _ = page.wait(lambda: page.find("#file")[0].send_keys(str(path)))
        assert torch.equal(pixels, expected)
    page.find("#camera")[0].click()
    page.until("return document.getElementById('video').videoWidth")
    pixels, _, _ = page.wait(page.find("#take")[0].click)
    assert pixels.float().std() > 10  # of the browser's test picture
    page.until("return !document.getElementById('viewfinder').open")
    page.until("return !document.getElementById('video').srcObject.active")


def test_the_keyboard_is_enough(page):
    from selenium.webdriver import ActionChains, Keys

    def press(*keys):
        ActionChains(page.browser).send_keys(*keys).perform()

    page.browser.refresh()
    page.until(SHOWN)
    page.run(LISTEN)
    _, logits, _ = page.wait(lambda: press(Keys.TAB, Keys.TAB, Keys.ENTER))
    assert page.find("#samples [aria-pressed=true]")[0].text == data.CLASSES[1]
    press(*[Keys.TAB] * 12, Keys.SPACE)  # eight pictures, two buttons, and the second of the bars
    second = data.CLASSES[logits.topk(2).indices[1]]
    assert page.find("#where")[0].text == f"What speaks for {second}"


def test_it_fits_a_phone_and_follows_the_theme(page):
    colours = []
    for theme, width in (("light", 390), ("dark", 390), ("dark", 1000), ("light", 1000)):
        feature = {"name": "prefers-color-scheme", "value": theme}
        size = {"width": width, "height": 800, "deviceScaleFactor": 1.5, "mobile": width < 500}
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert page.run("return document.documentElement.scrollWidth") <= width
        colours.append(page.run("return getComputedStyle(document.body).backgroundColor"))
    assert colours[0] == colours[3] != colours[1] == colours[2]
    page.wait(page.find("#samples button")[5].click)
    if path := os.environ.get("SCREENSHOT"):  # where the README's picture is to be written
        page.browser.save_screenshot(path)
