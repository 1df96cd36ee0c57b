"""Build the page that runs the network in a browser, and serve it on this machine.

    pip install -r requirements-export.txt && (cd demo && npm ci)    # once
    python demo/serve.py

The page needs no server of its own: demo/build/ can be put on any static host as it is.
"""

import shutil
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

import data
import utils
from models.mirror import untied
from training import onnx_files, weights

FOLDER = Path(__file__).resolve().parent
BUILD = FOLDER / "build"
PAGE = ("index.html", "style.css", "page.js", "picture.js")
RUNTIME = FOLDER / "node_modules" / "onnxruntime-web" / "dist"
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
# What Pillow's bicubic does to a square picture in predict.py, bit for bit.
SHRINK = """<ir_version: 9, opset_import: ["" : 19]>
shrink (uint8[side, side, 4] rgba) => (uint8[1, 3, 32, 32] pixels)
<int64[1] first = {0}, int64[1] end = {3}, int64[1] axis = {2}, int64[4] sizes = {1, 3, 32, 32}> {
  rgb = Slice(rgba, first, end, axis)
  planes = Transpose<perm = [2, 0, 1]>(rgb)
  image = Unsqueeze(planes, first)
  pixels = Resize<mode = "cubic", cubic_coeff_a = -0.5, antialias = 1, exclude_outside = 1>
    (image, , , sizes)
}"""


class Handler(SimpleHTTPRequestHandler):
    """Serves files with their types, whatever this machine's table of types says."""

    extensions_map = {".mjs": "text/javascript", ".js": "text/javascript"}
    extensions_map |= {".wasm": "application/wasm", ".html": "text/html", ".css": "text/css"}

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # a new build shows at the next visit
        super().end_headers()

    def log_request(self, *_: object) -> None:
        """Only errors are logged."""


def build(path: Path) -> None:
    """Put page, runtime, ten pictures and the network of the checkpoint at `path` into demo/build/.

    Raises utils.RunError where onnxruntime-web is not installed or the folder is not writable.
    """
    if not RUNTIME.exists():
        raise utils.RunError(f"onnxruntime-web is not installed: run npm ci in {FOLDER}")
    onnx_files.require_packages()
    from onnx import parser  # an optional requirement

    network, checkpoint = weights.load_network(path)
    utils.make_folder(BUILD / "samples")
    whole = weights.PixelClassifier(untied(network), **checkpoint["normalization"], maps=True)
    onnx_files.export_onnx(whole.eval(), BUILD / "network.onnx", {})
    facts = {
        "bytes": (BUILD / "network.onnx").stat().st_size,
        "parameters": utils.count_parameters(network),
        "classes": list(checkpoint["classes"]),
    }
    utils.write_json(BUILD / "network.json", facts)
    (BUILD / "shrink.onnx").write_bytes(parser.parse_model(SHRINK).SerializeToString())
    for folder, names in ((FOLDER, PAGE), (RUNTIME, RUNTIME_FILES)):
        for name in names:
            shutil.copyfile(folder / name, BUILD / name)
    split = data.load("sample", data.DEFAULT_DIRECTORY, "val")
    for label in range(len(data.CLASSES)):
        image = split.images[split.labels == label][0]  # the first of its class, right or wrong
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(BUILD / "samples" / f"{label}.png")


def main(argv: list[str] | None = None) -> None:
    parser = utils.ArgumentParser(description="Build the page of the network and serve it here.")
    weights.add_checkpoint(parser)
    add = parser.add_argument
    add("--port", type=int, metavar="N", default=8000, help="of localhost; 0: any free one (8000)")
    arguments = parser.parse_args(argv)
    build(arguments.checkpoint)
    try:
        handler = partial(Handler, directory=BUILD)
        server = ThreadingHTTPServer(("127.0.0.1", arguments.port), handler)
    except (OSError, OverflowError) as error:
        raise utils.RunError(f"--port {arguments.port}: {error}; choose another") from error
    with server:
        print(f"http://localhost:{server.server_port} (Ctrl-C ends it)", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    utils.run_script(main, data.DataError, OSError)
