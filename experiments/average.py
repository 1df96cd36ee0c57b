"""Average the weights of several checkpoints of one network into a new checkpoint.

    python experiments/average.py FILE FILE --output averaged.safetensors

For trainings that went on from the same weights with --weights and differ in seed or recipe: their
mean is often better than each of them (Wortsman et al. 2022, arXiv:2203.05482). Score the new
checkpoint with test.py; the history in it is that of the first file.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

import data
import utils
from training import checkpoint as checkpoints
from training import weights
from training.flags import compact, file

BATCH_SIZE = 250
BATCHES = 40  # for the statistics


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = utils.ArgumentParser(description=__doc__, formatter_class=compact)
    add = parser.add_argument
    add("files", nargs="+", type=file, metavar="FILE", help="checkpoints of one network")
    add("--output", type=file, metavar="PATH", required=True, help="checkpoint to write")
    weights.add_data(parser)
    return parser.parse_args(argv)


def average(paths: Sequence[Path]) -> tuple[nn.Module, dict[str, Any]]:
    """The network with the mean weights, and the first checkpoint.

    Raises:
        utils.RunError: a file is missing, damaged, of another network or trained on other images.
    """
    networks, loaded = zip(*map(weights.load_network, paths), strict=True)
    for path, checkpoint in zip(paths, loaded, strict=True):
        for key in ("model", "config", "data", "normalization"):
            if checkpoint[key] != loaded[0][key]:
                raise utils.RunError(f"{path} and {paths[0]} differ in their {key}")
    mean = AveragedModel(networks[0])
    for network in networks:
        mean.update_parameters(network)
    return mean.module, loaded[0]


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    utils.make_folder(arguments.output.parent)
    network, checkpoint = average(arguments.files)
    source = weights.choose_source(arguments.data, checkpoint["data"])
    split = checkpoint["data"]["train_split"]
    data.find(source, arguments.data_dir, need=(split,), download_url=arguments.download_url)
    loader = data.Loader(
        data.load(source, arguments.data_dir, split),
        BATCH_SIZE,
        **checkpoint["normalization"],
        augmentation=data.Augmentation(crop_padding=4, flip="random"),
        shuffle=True,
    )
    # The statistics of averaged weights are not the average of the statistics (Izmailov et al.
    # 2018, arXiv:1803.05407).
    update_bn(islice(loader, BATCHES), network)
    content = {key: value for key, value in checkpoint.items() if key != "training"}
    content["state_dict"] = network.state_dict()
    checkpoints.save_checkpoint(arguments.output, content)
    print(f"Wrote {utils.clean(arguments.output)}, the mean of {len(arguments.files)} checkpoints")


if __name__ == "__main__":
    utils.run_script(main, data.DataError, OSError)
