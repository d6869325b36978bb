"""What follows a backbone: bottleneck, class head, and the network that joins them."""

from mindspore import nn, ops

HIDDEN = 100


class LinearHead(nn.Cell):
    """Features (N, D) -> class logits (N, K): a dense layer, `keep` an inverted-dropout mask (N, D) before
    it.
    """

    def __init__(self, features, classes, dropout=0.0):
        super().__init__(auto_prefix=False)
        self.dense = nn.Dense(features, classes)
        self.masks, self.classes = (((features,), dropout),), classes

    def construct(self, features, keep=None):
        return self.dense(features if keep is None else features * keep)


class Precomputed(nn.Cell):
    """In place of a backbone where its features (N, D) are given: hands them on.

    Args:
        backbone: the one that computed them.
    """

    masks = ()

    def __init__(self, backbone):
        super().__init__(auto_prefix=False)
        self.feature_size, self.head_dropout = backbone.feature_size, backbone.head_dropout

    def construct(self, features):
        return features


class Bottleneck(nn.Cell):
    """Features (N, D) -> (N, size): dense layer, batch normalisation, ReLU."""

    def __init__(self, features, size):
        super().__init__()
        self.dense = nn.Dense(features, size)
        self.norm = nn.BatchNorm1d(size)
        self.feature_size = size

    def construct(self, features):
        return ops.relu(self.norm(self.dense(features)))


class Classifier(nn.Cell):
    """Images -> class logits: backbone, perhaps a bottleneck, class head.

    float32 (N, C, S, S), prepared as `preparation` says, -> (N, K).

    Parameters are called as in the published networks, whatever cells hold them: the backbone's and the
        head's names get the two prefixes of the family, the bottleneck's "bottleneck.".

    Args:
        family: the networks.Family that the backbone belongs to.

    Attributes:
        backbone, neck, head: the parts; neck is None without a bottleneck.
        feature_size: D of `features`.
        masks: ((shape of one image's mask, probability > 0), …), the dropout masks of `construct` in the
            order of its arguments; the first `split` of them are the backbone's.
        draw_order: positions in `masks`, in the order in which a step draws them.
        preparation: how images are prepared.
        classes: K.
        head_prefixes: what names of class heads of this family begin with.
    """

    def __init__(self, backbone, neck, head, preparation, family):
        super().__init__(auto_prefix=False)
        # Their own names, not those of the attributes: a LinearHead's are `weight` and `bias`.
        for part, prefix in zip((backbone, head), family.prefixes, strict=True):
            for parameter in part.get_parameters():
                parameter.name = prefix + parameter.name
        if neck is not None:
            neck.update_parameters_name("bottleneck.")
        self.backbone, self.neck, self.head = backbone, neck, head
        self.feature_size = backbone.feature_size if neck is None else neck.feature_size
        # Masks that drop nothing are left out. `construct` would then give later masks the wrong places, but
        # no network of ours has any behind such a mask.
        of_backbone, of_head = (tuple(m for m in part.masks if m[1] > 0) for part in (backbone, head))
        self.masks, self.split = (*of_backbone, *of_head), len(of_backbone)
        order = range(len(self.masks))
        self.draw_order = (
            (*order[self.split :], *order[: self.split]) if family.head_draws_first else tuple(order)
        )
        self.preparation, self.classes = preparation, head.classes
        self.head_prefixes = tuple({family.prefixes[1], "classifier."})

    def prefix_names(self, prefix):
        """Put `prefix` before the name of every parameter, where a checkpoint holds two such networks."""
        for parameter in self.get_parameters():
            parameter.name = prefix + parameter.name

    def features(self, images, *masks):
        """Images and the backbone's masks -> features (N, feature_size), before any dropout of the head."""
        features = self.backbone(images, *masks)
        return features if self.neck is None else self.neck(features)

    def classify(self, features, *masks):
        """Features (N, feature_size) and the head's masks -> logits (N, K)."""
        return self.head(features, *masks)

    def construct(self, images, *masks):
        return self.classify(self.features(images, *masks[: self.split]), *masks[self.split :])


class DomainHead(nn.Cell):
    """Features (N, D) -> domain logits (N, 2), column 0 source, column 1 target: DANN's domain classifier."""

    def __init__(self, features):
        super().__init__()
        self.fc1 = nn.Dense(features, HIDDEN)
        self.bn1 = nn.BatchNorm1d(HIDDEN)
        self.fc2 = nn.Dense(HIDDEN, 2)
        self.relu = nn.ReLU()

    def construct(self, features):
        return self.fc2(self.relu(self.bn1(self.fc1(features))))
