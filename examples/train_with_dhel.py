"""Train ResNet-18 with DHEL through torchvision's usual pipeline: random augmentation, DataLoader, SGD."""

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import models, transforms

from dhel_kcl.losses import DHEL

augment = transforms.Compose(
    [
        transforms.RandomResizedCrop(32, scale=(0.4, 1.0)),
        transforms.ColorJitter(brightness=0.4, contrast=0.4),
        transforms.ToTensor(),
    ]
)


def two_views(batch: list[tuple[Image.Image, int]]) -> list[Tensor]:
    """Return two random views of M labelled images, each (M, 3, 32, 32) float32 in [0, 1]."""
    return [torch.stack([augment(image) for image, _ in batch]) for _ in range(2)]


torch.manual_seed(0)
pixels, labels = load_digits(n_class=5, return_X_y=True)
images = [Image.fromarray(image).convert("RGB") for image in np.uint8(pixels * 255 / 16).reshape(-1, 8, 8)]
dataset = list(zip(images, labels, strict=True))  # or torchvision.datasets.CIFAR10("data", download=True)

loader = DataLoader(dataset, batch_size=128, shuffle=True, drop_last=True, collate_fn=two_views)
encoder = models.resnet18(num_classes=128)
optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1, momentum=0.9)
loss = DHEL(temperature=0.3)

for epoch in range(1, 4):
    terms = []
    for view1, view2 in loader:
        alignment, energy = loss.terms(encoder(view1), encoder(view2))
        optimizer.zero_grad()
        (alignment + energy).backward()
        optimizer.step()
        terms.append((alignment.item(), energy.item()))
    a, e = np.mean(terms, axis=0)
    print(f"epoch {epoch}: loss {a + e:.3f} = alignment {a:.3f} + energy {e:.3f}", flush=True)
