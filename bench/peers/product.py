"""No peer: how fast this CPU multiplies two matrices, which is what a training's arithmetic is measured against."""

import argparse
import json
import os
import time

import torch

SIZE, TIMES = 2048, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    one, other = torch.randn(2, SIZE, SIZE).to(getattr(torch, parser.parse_args().precision))
    fastest = float("inf")
    for _ in range(TIMES):
        started = time.perf_counter()
        torch.mm(one, other)
        fastest = min(fastest, time.perf_counter() - started)
    print(json.dumps({"gflops": 2 * SIZE**3 / fastest / 1e9}))


if __name__ == "__main__":
    main()
