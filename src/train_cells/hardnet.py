"""HarDNet, the Harmonic DenseNet (Chao et al. 2019, arXiv 1909.00948): supervised, on image folders."""

import logging
from pathlib import Path

import numpy as np
from mindspore import ops

from model_utils import checkpoint
from model_utils.errors import UserError
from model_utils.key import Key
from src.data import image_folder
from src.networks.hardnet import VARIANTS, hardnet
from src.train_cells import Phase
from src.train_cells import _supervised as supervised

log = logging.getLogger("run")

DOMAIN = "val"
HEAD = "classifier.weight"  # (class_num, channels)

KEYS = {
    "variant": Key("39ds", "39ds and 68ds: depthwise separable; 68; 85", choices=tuple(VARIANTS)),
    "class_num": Key(1000, "number of classes, as many as the data has", low=2),
    "epoch_size": Key(150, "epochs of the whole training, those done before this run included", low=1),
    "pretrain_epoch_size": Key(
        0,
        "epochs of epoch_size done before this run, which starts from their weights (pre_ckpt_path): it "
        "trains the rest, and the learning rate goes on where they ended",
        low=0,
    ),
    "batch_size": Key(
        256,
        "images per batch and process; evaluation takes no more at once; export.py: fixed batch size",
        low=1,
    ),
    **supervised.KEYS,
    **image_folder.keys(),
}


def build_network(config):
    """Image -> logits network, untrained: float32 (N, 3, S, S), normalised -> (N, class_num)."""
    return hardnet(config.variant, config.class_num)


def test_sets(config, device):
    """{"val": loader over this process's share of the validation folder}."""
    folder = _folder(config, "val")
    image_folder.same_classes(folder, config.dataset_path)
    loader = image_folder.FolderTestLoader(
        folder,
        min(config.batch_size, config.eval_batch_size),
        config.image_size,
        config.crop_pct,
        rank=device.rank,
        world=device.world,
        workers=config.num_parallel_workers,
        strict=config.strict,
    )
    return {DOMAIN: loader}


def build(config, device):
    """The train cell of a run."""
    return HardnetTrainCell(config, device)


def accuracy_lines(top1, top5):
    """The lines that users of the published model grep."""
    lines = [f"accuracy:{{'acc':{round(top1[DOMAIN], 6)}}}"]
    return lines + [f"top-5 accuracy: {round(value, 6)}" for value in top5.values()]


def _folder(config, split):
    """The images of a split; UserError unless it has `class_num` classes."""
    folder = image_folder.scan(image_folder.find_split(config.dataset_path, split), config.strict)
    count = len(folder.classes)
    if count != config.class_num:
        raise UserError(
            f"class_num: {config.class_num}, but dataset_path {config.dataset_path} has {count} classes in "
            f"{split}; give --class_num {count}, or another --dataset_path"
        )
    return folder


def _train_loader(config, device):
    return image_folder.FolderTrainLoader(
        _folder(config, "train"),
        config.batch_size * config.gradient_accumulation,
        config.seed,
        config.image_size,
        rank=device.rank,
        world=device.world,
        color_jitter=config.color_jitter,
        scale=(config.crop_scale_min, 1.0),
        workers=config.num_parallel_workers,
        cache=config.cache,
        strict=config.strict,
    )


def load_pretrained(network, config):
    """Fill `network` from pre_ckpt_path; with another number of classes its last layer stays a new one.

    Raises:
        UserError: no checkpoint there, or anything else in it does not fit; the message lists the names.
    """
    path = Path(config.pre_ckpt_path)
    path, values, _ = checkpoint.newest(path) if path.is_dir() else (path, *checkpoint.read(path))
    classes = values[HEAD].shape[0] if HEAD in values and values[HEAD].ndim else config.class_num
    if classes == config.class_num:
        checkpoint.load_network(network, path)
        log.info("starting from the weights of %s", path)
        return
    donor = hardnet(config.variant, classes)
    checkpoint.load_network(donor, path)
    new = {id(parameter) for parameter in network.classifier.get_parameters()}
    for own, other in zip(network.get_parameters(), donor.get_parameters(), strict=True):
        if id(own) not in new:
            ops.assign(own, other)
    log.info(
        "starting from the weights of %s; its classifier of %d classes is replaced by a new one of %d",
        path,
        classes,
        config.class_num,
    )


class HardnetTrainCell(supervised.SupervisedTrainCell):
    """Supervised training of one of the variants."""

    def __init__(self, config, device):
        if config.batch_size < 2 and not config.freeze_backbone:
            raise UserError("batch_size: batch normalisation needs at least 2 images; choose a larger one")
        left = config.epoch_size - config.pretrain_epoch_size
        if left < 1:
            raise UserError(
                f"pretrain_epoch_size: {config.pretrain_epoch_size} epochs are done and epoch_size is "
                f"{config.epoch_size}: nothing is left to train; raise epoch_size"
            )
        loader = _train_loader(config, device)
        epoch = loader.steps_per_epoch
        network = build_network(config)
        if config.pre_ckpt_path and not config.resume:
            load_pretrained(network, config)
        super().__init__(
            network,
            Phase("train", left * epoch, epoch, {"train": loader}),
            config,
            device,
            _dropout(network, config.image_size),
            network.classifier,
            first_step=config.pretrain_epoch_size * epoch,
        )

    def features(self, images):
        """(N, 3, S, S) -> pooled features (N, C)."""
        return self.network.features_of(images)

    def log_line(self, phase, values):
        """The line of MindSpore's own LossMonitor: epoch and step count from 1."""
        epoch, step = divmod(phase.step, phase.steps_per_epoch)
        return f"epoch:{epoch + 1} step:{step + 1}, loss is {np.float32(values['loss'])!s}"


def _dropout(network, image_size):
    """[(shape of an image's mask, probability)] in the order of the network's arguments."""
    masks = [((network.feature_channels,), network.dropout_rate)]
    if network.block_dropout_rate:
        side = -(-image_size // 4) // 8  # the stem halves twice and rounds up, the pools three times and down
        masks.append(((network.block_channels, side, side), network.block_dropout_rate))
    return masks
