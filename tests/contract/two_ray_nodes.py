"""python two_ray_nodes.py SCRIPT JOB OUT SHARDS: runs the script on a Ray cluster of two nodes with a CPU each, and
removes one of them when OUT has so many shards. For an environment that has ray."""

import json
import subprocess
import sys
import time
from pathlib import Path

from ray.cluster_utils import Cluster

script, job, out, enough = sys.argv[1:]


def shards() -> int:
    return len(list(Path(out).glob("part-*")))


cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
asked = ["--workers", "2", "--gpus", "0", "--cpus", "1", "--address", cluster.address]
with subprocess.Popen([sys.executable, script, job, *asked], stdout=sys.stderr) as run:
    while run.poll() is None and shards() < int(enough):
        time.sleep(0.05)
    cluster.remove_node(nodes[1])
    made = shards()
    code = run.wait()
cluster.shutdown()
print(json.dumps({"shards": made, "code": code}))
