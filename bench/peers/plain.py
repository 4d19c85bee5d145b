"""Plain PyTorch on arrays in memory: the loop that one writes who knows that the set is small."""

import numpy as np
import numpy.typing as npt
import torch
from torch import optim
from torch.nn import functional as F

from bench.peers.run import LR, Run, main
from bench.peers.torch_net import autocast, make_net, predict


def train(run: Run) -> npt.NDArray[np.int64]:
    """Return the predicted class of each test image."""
    torch.manual_seed(run.seed)
    torch.set_num_threads(run.threads)
    data = {
        split: (torch.from_numpy(run.images(split)).unsqueeze(1), torch.from_numpy(run.labels(split)))
        for split in ("train", "valid", "test")
    }
    (images, labels), (valid_images, valid_labels) = data["train"], data["valid"]
    net, precision = make_net(run.net), autocast(run.precision)
    optimizer = optim.Adam(net.parameters(), lr=LR)
    for epoch in range(run.epochs):
        net.train()
        total = 0.0
        for indices in torch.randperm(len(labels)).split(run.batch_size):
            optimizer.zero_grad()
            with precision():
                scores = net(images[indices])
            loss = F.cross_entropy(scores.float(), labels[indices])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(indices)
            run.note()
        with precision():
            accuracy = (predict(net, valid_images) == valid_labels.numpy()).mean()
        run.note()
        print(f"epoch {epoch + 1}: train loss {total / len(labels):.4f}, validation accuracy {accuracy:.4f}")
    return predict(net, data["test"][0])


if __name__ == "__main__":
    main(train)
