"""The collectives in real processes."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from workbench import distributed

WORLD = 3


def _worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    features = (torch.arange(4.0).view(2, 2) + 10 * rank).requires_grad_()
    gathered = distributed.gather_features(features)
    # Process r weighs row j by (r + 1) * (j + 1): the gradient of row j is the sum over processes.
    weights = torch.arange(1.0, 2 * WORLD + 1)[:, None]
    ((rank + 1) * weights * gathered).sum().backward()
    sizes = (2, 0, 3)
    ragged = distributed.gather_ragged(torch.full((sizes[rank], 2), float(rank)))
    nothing = distributed.gather_ragged(torch.zeros(0, 5, dtype=torch.long))
    said = distributed.broadcast_object({"from": rank})
    torch.save(
        {
            "gathered": gathered.detach(),
            "grad": features.grad,
            "ragged": ragged,
            "nothing": nothing,
            "said": said,
            "rank": distributed.rank(),
            "world": distributed.world_size(),
        },
        Path(folder, f"{rank}.pt"),
    )
    dist.barrier()  # with some releases, who leaves first lets the last wait for ever
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads now and then abort the interpreter's end (pytorch #179291)


def test_three_processes(tmp_path):
    mp.spawn(_worker, (str(tmp_path),), nprocs=WORLD)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    expected = torch.cat([torch.arange(4.0).view(2, 2) + 10 * rank for rank in range(WORLD)])
    for rank, result in enumerate(results):
        assert torch.equal(result["gathered"], expected)
        rows = torch.tensor([2.0 * rank + 1, 2.0 * rank + 2])[:, None]
        assert torch.equal(result["grad"], (1 + 2 + 3) * rows.expand(2, 2))
        assert torch.equal(result["ragged"], torch.tensor([0.0, 0, 2, 2, 2])[:, None].expand(5, 2))
        assert result["nothing"].shape == (0, 5)
        assert result["said"] == {"from": 0}
        assert (result["rank"], result["world"]) == (rank, WORLD)
