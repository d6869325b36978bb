"""Experiments of several runs, each of them on several hosts: every host goes through the same runs in step.

The hosts share no disk, and results lie on the first one. So before each run it says whether the run is there
already, and whether it goes on where it stopped; after it, what came out.
"""

from model_utils import child, hosts, link
from model_utils.jobs import chosen_port, patience
from model_utils.meeting import Team

OPTIONS = ("hosts", "node_rank", "master_addr", "master_port", "cluster_time_out")


class Alone:
    """One host."""

    def agree(self, part, value):
        """What this host says."""
        return value

    def train(self, words):
        """Run train.py to its end; returns its status."""
        return child.run(["train.py", *words])


class Together:
    """Several hosts, each of which runs the same command.

    Args:
        own: the options of the launcher that were given, {name: text}.
    """

    def __init__(self, own):
        self.own, self.names = own, hosts.parse(own["hosts"])
        self.node = hosts.node_rank(self.names, own.get("node_rank"))

    def agree(self, part, value):
        """What the first host says about a part of the experiment.

        Raises:
            UserError: another host is at another part, or does not come within cluster_time_out.
        """
        facts = {"hosts": ",".join(self.names), "part": part}
        address, port = self.own.get("master_addr", self.names[0]), chosen_port(self.own, free=False) + 1
        return link.first_says(Team(self.names, self.node, address, port, patience(self.own), facts), value)

    def train(self, words):
        """Run train.py on all hosts, one process each; returns its status."""
        options = [f"--{name}={value}" for name, value in self.own.items()]
        launcher = ["-m", "model_utils.launch", "--program", "train.py", "--target", "auto"]
        return child.run([*launcher, "--", *words, *options])


def party(own):
    """Together where hosts are named in `own`, else Alone."""
    return Together(own) if own.get("hosts") else Alone()
