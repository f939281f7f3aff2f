"""python two_ray_nodes.py lose|stop OUT SHARDS COMMAND...: runs a command on a Ray cluster of two nodes with a CPU
each, whose address takes the place of ADDRESS in it. When OUT has so many shards, one of the nodes is removed, or the
command gets a SIGTERM. For an environment that has ray."""

import json
import subprocess
import sys
import time
from pathlib import Path

from ray.cluster_utils import Cluster

act, out, enough, *command = sys.argv[1:]


def shards() -> int:
    return len(list(Path(out).glob("part-*")))


cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
asked = [cluster.address if part == "ADDRESS" else part for part in command]
with subprocess.Popen(asked, stdout=sys.stderr) as run:
    while run.poll() is None and shards() < int(enough):
        time.sleep(0.05)
    if act == "stop":
        run.terminate()
    else:
        cluster.remove_node(nodes[1])
    made = shards()
    code = run.wait()
cluster.shutdown()
print(json.dumps({"shards": made, "code": code}))
