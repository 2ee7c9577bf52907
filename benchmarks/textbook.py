"""The textbook ways that the benchmarks compare with: PIL each time, float32, channels first, loops, N x N matrices."""
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def read_picture(path, rng=None, side=224):
    """File -> resize to 8/7 of ``side`` -> crop of ``side`` -> flip -> float tensor -> normalised."""
    larger = round(side * 8 / 7)
    with Image.open(path) as image:
        image = image.convert("RGB").resize((larger, larger), Image.BILINEAR)
    left, top = [(larger - side) // 2] * 2 if rng is None else rng.integers(0, larger - side + 1, size=2).tolist()
    image = image.crop((left, top, left + side, top + side))
    if rng is not None and rng.random() < 0.5:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255 - MEAN) / STD


class Pictures(Dataset):
    def __init__(self, samples, train, side=224):
        self.samples = samples
        self.train = train
        self.side = side

    def __getitem__(self, index):
        path, label = self.samples[index]
        return read_picture(path, np.random.default_rng(index) if self.train else None, self.side), label

    def __len__(self):
        return len(self.samples)


def loader(samples, batches=None, batch=64, workers=2, side=224):
    if batches is None:
        return DataLoader(Pictures(samples, False, side), batch_size=batch, num_workers=workers)
    return DataLoader(Pictures(samples, True, side), batch_sampler=batches, num_workers=workers)


class Network(nn.Module):
    """A torchvision network, a linear head in place of its last layer, on normalised pictures of ``side`` pixels."""

    def __init__(self, architecture, dimensions, normalise, side=224):
        super().__init__()
        from model.compat import import_torchvision
        self.layers = getattr(import_torchvision().models, architecture)(
            **{"image_size": side} if architecture.startswith("vit") else {})
        name, last = [(name, layer) for name, layer in self.layers.named_modules() if isinstance(layer, nn.Linear)][-1]
        parent, _, attribute = name.rpartition(".")
        setattr(dict(self.layers.named_modules())[parent], attribute, nn.Linear(last.in_features, dimensions))
        self.normalise = normalise

    def forward(self, images):
        embeddings = self.layers(images)
        return F.normalize(embeddings, dim=1) if self.normalise else embeddings


def distances(e):
    squares = e.pow(2).sum(1)
    result = (squares.unsqueeze(0) + squares.unsqueeze(1) - 2 * e @ e.t()).clamp(min=1e-12).sqrt()
    return result * (1 - torch.eye(len(e), device=e.device))


def rkd_distance(student, teacher):
    with torch.no_grad():
        t = distances(teacher)
        t = t / t[t > 0].mean()
    d = distances(student)
    return F.smooth_l1_loss(d / d[d > 0].mean(), t)


def rkd_angle(student, teacher):
    def cosines(e):
        edge = F.normalize(e.unsqueeze(0) - e.unsqueeze(1), p=2, dim=2)
        return torch.bmm(edge, edge.transpose(1, 2)).view(-1)
    with torch.no_grad():
        t = cosines(teacher)
    return F.smooth_l1_loss(cosines(student), t)


def triplets_by_loop(labels):
    labels = labels.tolist()
    n = len(labels)
    found = []
    for a in range(n):
        for p in range(n):
            if a != p and labels[a] == labels[p]:
                for k in range(n):
                    if labels[k] != labels[a]:
                        found.append((a, p, k))
    return torch.tensor(found).unbind(1)


def triplet(embeddings, labels, margin=0.2):
    a, p, n = triplets_by_loop(labels)
    return F.triplet_margin_loss(embeddings[a], embeddings[p], embeddings[n], margin=margin)


def recall(embeddings, labels, ks):
    distance = distances(embeddings)
    distance.fill_diagonal_(float("inf"))
    nearest = distance.topk(max(ks), largest=False)[1]
    same = labels[nearest] == labels.unsqueeze(1)
    return [same[:, :k].any(1).float().mean().item() for k in ks]
