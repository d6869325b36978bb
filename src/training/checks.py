"""What a configuration may not ask of a method, found before anything is trained."""

from model_utils.errors import UserError
from src.training.batch_norm import has_batch_norm


def refuse_keys(trainer):
    """Refuse keys that a method's own step, or cached features, make meaningless.

    Raises:
        UserError: one of them is not at its default, or asks for what the method does not do.
    """
    config = trainer.config
    for name in trainer.OWN_STEP:
        if getattr(config, name) != config.keys[name].default:
            raise UserError(
                f"{name}: method {config.method} has a step of its own, to which this does not "
                "apply; leave it out"
            )
    for name, own in trainer.INSTEAD.items():
        if getattr(config, name) != config.keys[name].default:
            raise UserError(
                f"{name}: does not apply to method {config.method}, which has {own}; set that one"
            )
    if config.batch_norm == "per_domain" and not trainer.PER_DOMAIN:
        raise UserError(
            f"batch_norm: per_domain is not defined for method {config.method}; choose joint or frozen"
        )
    for name in trainer.ON_IMAGES if config.cache_features else ():
        if getattr(config, name) != config.keys[name].default:
            raise UserError(
                f"{name}: changes images in every step, which cached features do not allow; leave it, or "
                "cache_features, out"
            )


def check_batch(trainer):
    """Refuse batches of one image where batch normalisation has to see more.

    Raises:
        UserError: there are such batches.
    """
    config, network = trainer.config, trainer.network
    normalises = has_batch_norm(network.head) or (
        has_batch_norm(network.backbone) and not config.freeze_backbone and config.batch_norm != "frozen"
    )
    if trainer.smallest_batch < 2 and (normalises or config.bottleneck):
        raise UserError("batch_size: batch normalisation needs at least 2 images; choose a larger one")
