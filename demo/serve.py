"""Build the page that runs the network in a browser, and serve it on this machine.

    pip install -r requirements-export.txt && (cd demo && npm ci)    # once
    python demo/serve.py

The page needs no server of its own: demo/build/ can be put on any static host as it is.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

import data
import models
import utils
from training import checkpoint as checkpoints

FOLDER = Path(__file__).resolve().parent
BUILD = FOLDER / "build"
PAGE = ("index.html", "style.css", "page.js", "picture.js")
RUNTIME = FOLDER / "node_modules" / "onnxruntime-web" / "dist"
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}
HEADERS = {
    # Isolated from other sites, a page gets the browser's fine clock.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-cache",  # a new build shows at the next visit
}


class Handler(SimpleHTTPRequestHandler):
    """Serves files with their types, whatever this machine's table of types says."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | TYPES

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_request(self, *_: object) -> None:
        """Only errors are logged."""


def export(checkpoint: Path, path: Path) -> None:
    """Write the ONNX network with its class activation maps, by export.py, which checks it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(FOLDER.parent / "export.py"), "--maps", "--data", "sample"]
        done = subprocess.run([*command, "--checkpoint", str(checkpoint), "--output", folder])
        if done.returncode:
            sys.exit(done.returncode)
        shutil.copyfile(Path(folder, f"{checkpoint.stem}.onnx"), path)


def build(checkpoint: Path) -> None:
    """Put all that the page needs into demo/build/: page, runtime, network and ten pictures.

    Raises utils.RunError where onnxruntime-web is not installed or the folder is not writable.
    """
    if not all((RUNTIME / name).exists() for name in RUNTIME_FILES):
        raise utils.RunError(f"onnxruntime-web is not installed: run npm ci in {FOLDER}")
    loaded = checkpoints.load_checkpoint(checkpoint)
    model = checkpoints.rebuild(models.build, loaded, checkpoint)
    utils.make_folder(BUILD / "samples")
    # Named after its weights: it is exported once, and no browser takes an old one for a new one.
    network = BUILD / f"network-{hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12]}.onnx"
    if not network.exists():
        export(checkpoint, network)
    for other in set(BUILD.glob("network-*.onnx")) - {network}:
        other.unlink()
    facts = {
        "file": network.name,
        "bytes": network.stat().st_size,
        "parameters": utils.count_parameters(model),
        "classes": list(loaded["classes"]),
    }
    utils.write_json(BUILD / "network.json", facts)
    for folder, names in ((FOLDER, PAGE), (RUNTIME, RUNTIME_FILES)):
        for name in names:
            shutil.copyfile(folder / name, BUILD / name)
    split = data.load("sample", data.DEFAULT_DIRECTORY, "val")
    for label in range(len(data.CLASSES)):
        image = split.images[split.labels == label][0]  # the first of its class, right or wrong
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(BUILD / "samples" / f"{label}.png")


def main(argv: list[str] | None = None) -> None:
    parser = utils.ArgumentParser(description="Build the page of the network and serve it here.")
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="PATH", default=models.RELEASED_WEIGHTS, help="weights")
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
    utils.run_script(main, data.DataError, models.ModelError, OSError)
