"""Flags, names and words for command lines, and answers of a server."""

from dataclasses import fields

from hypothesis import strategies as st

from training.flags import flag
from training.recipe import Recipe
from training.settings import Options

WEIGHTS = ["--checkpoint", "HERE/weights.safetensors"]
RIGHT = {
    "train.py": "--model baseline --data sample --batch-size 4 --output run".split(),
    "test.py": [*WEIGHTS, "--output", "run"],
    "predict.py": [*WEIGHTS, "HERE/picture.png"],
    "export.py": [*WEIGHTS, "--calibration-images", "8", "--output", "run"],
}
FLAGS = {
    "train.py": [flag(f.name) for f in (*fields(Recipe), *fields(Options)) if f.metadata],
    "test.py": "--checkpoint --split --explain --tta --precision".split(),
    "predict.py": "--checkpoint --whole --json --top --grid".split(),
    "export.py": "--checkpoint --calibration-images --maps".split(),
}
SHARED = "--device --data --data-dir --download-url --output --resume -h -x".split()
SHARED += ["--teacher", "--weights"]
NAMES = ["a\nb.png", "\x1b[2J.png", "\u202egnp.exe", "\udcff", "-x.png", "x" * 255, "$\\frac$.png"]
NAMES += [" ", "%s{0}.png", "\r", "字.png", "\x7f", "\x9b0m", "=", "~", "'\"", "\\n", "a.png", "b"]
PLACES = ["file", "folder", "fifo", "loop", "dangling", "file/below", "x" * 300, "x/" * 3000, "."]
PLACES += ["..", "/dev/null", "/dev/full", "/dev/zero", "/proc/self/mem", "/proc/self/fd/0", *NAMES]
PLACES += ["HERE/weights.safetensors", "HERE/picture.png", "HERE"]
WORDS = ["", "-1", "0", "1", "2", "1e999", "nan", "-inf", "1e308", "1e-320", "9" * 400, "9" * 5000]
WORDS += ["0x10", "1_000", "٣", "x" * 5000, "--", "-", "auto", "cpu", "cuda:99", "mps", "meta"]
WORDS += "none test val sample cifar10 steps muon adamw bf16 fp16 short".split()
URLS = ["http://[", "ftp://127.0.0.1/", "file:///dev/zero", "file:///proc/self/mem", "file://HERE/"]
URLS += ["http://a:b@127.0.0.1:1/\x1b[0m", "http://127.0.0.1:99999/", "http://\n/", "http://"]
words = st.sampled_from((*WORDS, *PLACES)) | st.sampled_from(PLACES) | st.sampled_from(URLS)
words |= st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)

STATUS = ["200 OK", "200", "404 \x1b[2Jno", "503 " + "x" * 5000, "999 ?", "401 a\rb"]
STATUS += ["301 Moved", ""]
HEADERS = ["Location: SELF", "Location: file:///etc/passwd", "Location: http://127.0.0.1:1/\x9b"]
HEADERS += ["Location: \x1b[0m", "Content-Length: -1", "Content-Length: 5", "X: LONG", "\x01: \0"]
HEADERS += ["Content-Length: " + "9" * 30, "Transfer-Encoding: chunked", "Content-Encoding: gzip"]
BODIES = ("", "zeros", "endless", "archive", "half", "slow")
