"""MAP@R, R-precision and MRR beside Recall@1: time and memory; those of pytorch-metric-learning where it is installed.

It needs faiss, too. The embeddings are those of recall.py: sizes of CUB-200-2011's test set and of Stanford Online
Products'. One more case has few, large classes, where R is large.
"""
from common import installed, main, parser

from metric.utils import MEASURES, measures
from recall import SIZES, embeddings

WAYS = {"Recall@1": ["recall"], "MAP@R, R-precision": ["map@r", "r-precision"], "all four": MEASURES}


def with_pytorch_metric_learning(e, labels):
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    calculator = AccuracyCalculator(k="max_bin_count", include=("precision_at_1", "mean_average_precision_at_r",
                                                                "r_precision"))
    return calculator.get_accuracy(e, labels)


def cases(device):
    result = {}
    sizes = {name: (n, classes) for name, (n, classes, _) in SIZES.items()}
    for name, (n, classes) in dict(sizes, **{"10 classes": (10000, 10)}).items():
        def job(function, n=n, classes=classes):
            return {"prepare": lambda: embeddings(n, classes, device), "count": 1, "warm_up": n < 10000,
                    "work": lambda e, labels: print(function(e, labels))}
        ways = result["{} x 512 ({})".format(n, name)] = {
            "ours, " + way: job(lambda e, labels, names=names: measures(e, labels, names))
            for way, names in WAYS.items()}
        if installed("pytorch_metric_learning") and installed("faiss"):
            ways["pytorch-metric-learning, all but MRR"] = job(with_pytorch_metric_learning)
    return result


if __name__ == "__main__":
    arguments = parser(__doc__, repeats=1).parse_args()
    main(arguments, cases(arguments.device), None)
