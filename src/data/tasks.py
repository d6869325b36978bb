import numpy as np  # noqa: F401

from src.data import domains, image_folder, pairs
from src.noise_compat import draw


class Task:
    def __init__(self, config, device):
        self.config, self.device = config, device
        self.form = "set" if config.domain_set else "pair" if config.source_dataset_name else "folder"
        if self.form == "set":
            cfg = config.replace(image_size=config.image_size)
            self.classes = tuple(map(str, range(domains.class_count(cfg))))
        elif self.form == "pair":
            self.classes = tuple("0123456789")
        else:
            self.folder = image_folder.scan(
                image_folder.find_split(config.dataset_path, "train"), config.strict
            )
            self.classes = self.folder.classes

    def _pair(self, p, batch):
        c = self.config.replace(batch_size=batch)
        return pairs.train_loaders(
            c,
            self.device,
            p.channels,
            p.size,
            lambda s, side: draw(s, getattr(c, side + "_dataset_name"), c.protocol, c.seed),
        )

    def labelled(self, p, batch, joined):
        if self.form == "pair":
            return {"source": self._pair(p, batch)[0]["source"]}
        if self.form == "set":
            return domains.build_loaders(self.config.replace(image_size=p.size), self.device, batch)
        c = self.config
        return {
            "train": image_folder.FolderTrainLoader(
                self.folder,
                batch,
                c.seed,
                p.size,
                rank=self.device.rank,
                world=self.device.world,
                color_jitter=c.color_jitter,
                scale=(p.crop_scale_min, 1.0),
                workers=c.num_parallel_workers,
                cache=c.cache,
                strict=c.strict,
            )
        }

    def unlabelled(self, p, batch):
        return {"target": self._pair(p, batch)[0]["target"]}

    def held_out(self, p):
        if self.form == "pair":
            return self._pair(p, self.config.batch_size)[1]
        if self.form == "set":
            return domains.held_out(self.config.replace(image_size=p.size), self.device)
        return None

    def test(self, p):
        if self.form == "pair":
            return pairs.test_sets(self.config, self.device, p.channels, p.size)
        if self.form == "set":
            return domains.test_sets(self.config.replace(image_size=p.size), self.device)
        c = self.config
        folder = image_folder.scan(image_folder.find_split(c.dataset_path, "val"), c.strict)
        return {
            "val": image_folder.FolderTestLoader(
                folder,
                min(c.batch_size, c.eval_batch_size),
                p.size,
                p.crop_pct,
                rank=self.device.rank,
                world=self.device.world,
            )
        }


def open_task(config, device, classes=None, least_sources=1):
    return Task(config, device)


def _sample(self, count, seed):
    xs, ys = [], []
    for x, y in self:
        xs.append(x)
        ys.append(y)
    return np.concatenate(xs)[:count], np.concatenate(ys)[:count]


from src.data.loader import TestLoader

TestLoader.sample = _sample
image_folder.FolderTestLoader.sample = _sample
Task.target = None
Task.images = property(lambda self: {})
Task.left_out = property(lambda self: {})
