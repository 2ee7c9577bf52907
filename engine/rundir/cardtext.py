"""The words of a model card, with places for what ``card.py`` finds in a run's record."""

HEAD = """---
library_name: pytorch
pipeline_tag: image-feature-extraction
tags:
{tags}
metrics:
- recall
---
{mark}, from the run's record. It is written again when the run goes on; without this line it stays as it is. -->

# {base}, {dimensions}: embeddings for image retrieval

It turns a picture into an embedding, {length}; embeddings of
pictures of one class are near each other (Euclidean distance). {made}

## Training

{facts}

```bash
{command}
```

## Recall

{selected}

{table}
"""
USE = """
## Use

In the folder of the project:

```python
import torch
from dataset import load_resized
from engine.networks import build_network, read_network_file

file = read_network_file({best})
network = build_network(file.options, file).eval()
picture = torch.from_numpy(load_resized("picture.jpg", {side}, resize={resize}).copy())
picture = picture[{start}:{end}, {start}:{end}].permute(2, 0, 1)  # 3 x {size} x {size}, uint8
with torch.no_grad():
    embedding = network(picture.unsqueeze(0))  # 1 x d
```

Without it, by onnxruntime: `python3 run.py --mode export --load {best_word} --out network.onnx`, then

```python
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

network = onnxruntime.InferenceSession("network.onnx")
picture = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB")
picture = picture.resize(({side}, {side}), Image.BILINEAR){note}
picture = np.asarray(picture)[{start}:{end}, {start}:{end}].transpose(2, 0, 1)[None]  # 1 x 3 x {size} x {size}, uint8
embedding = network.run(["embeddings"], {{"pictures": picture}})[0]  # 1 x d
```
"""
SHORT_SIDE = "\n# Trained with --resize short, which keeps the middle square; examples/use_onnx.py cuts it out"
SELECTED = {
    "test": "`{}` is the epoch with the best Recall@{} of the test set, as papers have it: the best of {} figures, "
            "chosen by the pictures that it is measured on.",
    "val": "`{}` is the epoch with the best Recall@{} of training classes that were held out (val), of {} epochs; no "
           "test picture had a say.",
    "last": "`{}` is the last epoch that was measured (Recall@{}, {} times)."}
