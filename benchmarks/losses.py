"""Losses, forward and backward: the textbook's, pytorch-metric-learning's where it is installed, ours."""
import torch

from common import installed, main, parser

import textbook
from metric.loss import (PKT, ContextualSimilarity, EmbeddingRegression, HardDarkRank, L2Triplet, MultiSimilarity,
                         ProxyAnchor, RelaxedContrastive, RKdAngle, RkdDistance, SimilarityKL)


def job(loss, n, dimension, device, labels=False):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(n, dimension, generator=generator).to(device) for _ in range(2))
    other = (torch.arange(n) // 5 % 100).to(device) if labels else teacher

    def work():
        leaf = student.clone().requires_grad_()
        loss(leaf, other).backward()
    return {"work": work, "count": 1}


def cases(device):
    result = {"triplets, all pairs, N = 128, d = 512": {
        "textbook": job(textbook.triplet, 128, 512, device, True)}}
    ways = result["triplets, all pairs, N = 128, d = 512"]
    if installed("pytorch_metric_learning"):
        from pytorch_metric_learning.losses import TripletMarginLoss
        ways["pytorch-metric-learning"] = job(TripletMarginLoss(margin=0.2), 128, 512, device, True)
    ways["ours"] = job(L2Triplet(), 128, 512, device, True)
    for title, theirs, ours in (("RKD distance", textbook.rkd_distance, RkdDistance()),
                                ("RKD angle", textbook.rkd_angle, RKdAngle())):
        for n in (128, 512):
            result["{}, N = {}, d = 512".format(title, n)] = {
                "textbook": job(theirs, n, 512, device), "ours": job(ours, n, 512, device)}
    if device.startswith("cuda"):  # what README reckons for 64 GPUs; slow on a CPU
        result["RKD distance, N = 4096, d = 512"] = {
            "textbook": job(textbook.rkd_distance, 4096, 512, device), "ours": job(RkdDistance(), 4096, 512, device)}
    # The textbook's would need 17 GB.
    result["RKD angle, N = 1024, d = 512"] = {"ours": dict(job(RKdAngle(), 1024, 512, device), warm_up=False)}
    for criterion in (HardDarkRank(), RelaxedContrastive(), PKT(), SimilarityKL(), EmbeddingRegression(),
                      ContextualSimilarity()):
        for n in (128, 1024):
            result["{}, N = {}, d = 512".format(type(criterion).__name__, n)] = {"ours": job(criterion, n, 512, device)}
    for n in (128, 1024):
        result["MultiSimilarity, N = {}, d = 512".format(n)] = {
            "ours": job(MultiSimilarity(), n, 512, device, labels=True)}
        for classes in (100, 11318):  # of CUB-200 and Stanford Online Products
            result["ProxyAnchor, N = {}, d = 512, {:,} classes".format(n, classes)] = {
                "ours": job(ProxyAnchor(classes, 512).to(device), n, 512, device, labels=True)}
    return result


if __name__ == "__main__":
    arguments = parser(__doc__).parse_args()
    main(arguments, cases(arguments.device), None)
