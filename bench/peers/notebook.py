"""The notebook's loop: torchvision's data set, ToTensor and Normalize for each image, and a DataLoader."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from bench.peers.run import LR, Run, main
from bench.peers.torch_net import autocast, make_net


def loaders(run: Run) -> dict[str, DataLoader[tuple[torch.Tensor, torch.Tensor]]]:
    """Return those of "train", "valid" and "test", of the images that all peers get."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.2860,), (0.3530,))])
    sets = {
        is_train: datasets.FashionMNIST(str(run.folder), train=is_train, transform=transform)
        for is_train in (True, False)
    }
    rows = {split: np.load(run.folder / f"{split}_rows.npy").tolist() for split in ("train", "valid")}
    return {
        "train": DataLoader(Subset(sets[True], rows["train"]), run.batch_size, shuffle=True, num_workers=run.workers),
        "valid": DataLoader(Subset(sets[True], rows["valid"]), 1000, num_workers=run.workers),
        "test": DataLoader(sets[False], 1000, num_workers=run.workers),
    }


def train(run: Run) -> npt.NDArray[np.int64]:
    """Return the predicted class of each test image."""
    torch.manual_seed(run.seed)
    torch.set_num_threads(run.threads)
    load, net, precision, criterion = loaders(run), make_net(run.net), autocast(run.precision), nn.CrossEntropyLoss()
    optimizer = optim.Adam(net.parameters(), lr=LR)
    for epoch in range(run.epochs):
        net.train()
        running_loss = 0.0
        for images, labels in load["train"]:
            optimizer.zero_grad()
            with precision():
                outputs = net(images)
            loss = criterion(outputs.float(), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            run.note()
        net.eval()
        hits = 0
        with torch.no_grad(), precision():
            for images, labels in load["valid"]:
                hits += int((net(images).argmax(1) == labels).sum())
        run.note()
        print(f"epoch {epoch + 1}: loss {running_loss / len(load['train']):.4f}, {hits} right of the validation images")
    with torch.no_grad():
        return torch.cat([net(images).argmax(1) for images, _ in load["test"]]).numpy()


if __name__ == "__main__":
    main(train)
