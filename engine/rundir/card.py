"""README.md of a run: a model card in the form of the Hugging Face Hub, made of what the run's record says."""
import contextlib
import json
import os
import shlex

from dataset import DATASETS, resized_size
from engine.arguments import as_typed
from engine.evaluation import TITLES
from engine.rundir.cardtext import HEAD, SELECTED, SHORT_SIDE, USE
from engine.rundir.files import BEST, CARD, LAST, write_text
from engine.rundir.paths import is_path
from engine.rundir.resume import NOT_PART_OF_THE_RUN

MARK = "<!-- Written by RKD"  # begins the line by which we know a card of ours


def write_card(directory, text):
    """Write the card of a run, unless README.md there is somebody's own.

    Raises:
        TrainingError: the disk refuses.
    """
    path = os.path.join(directory, CARD)
    if os.path.lexists(path) and not _is_ours(path):
        print("Note: {} is not by this project, so it stays as it is, and no model card is written".format(path),
              flush=True)
    else:
        write_text(path, text)


def remove_card(directory):
    """Remove the card of a run that goes on or is replaced; somebody's own README.md stays."""
    path = os.path.join(directory, CARD)
    if _is_ours(path):
        with contextlib.suppress(OSError):
            os.remove(path)


def _is_ours(path):
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return any(line.startswith(MARK) for line in file)
    return False


def card(script, options, defaults, data, log, best_epoch):
    """Return the text of a run's card.

    Args:
        script: its name. options, defaults: {option: value}, of the run and of a command without any.
        data: {split: [number of pictures, digest]}. log: the lines of log.jsonl.
        best_epoch: whose weights are best.pth.
    """
    epochs = [json.loads(line) for line in log]
    best = os.path.join(_shown(options["save_dir"]), BEST)
    size, side = options["image_size"], resized_size(options["image_size"])
    start = int(round((side - size) / 2))
    selected = SELECTED[options["select"]].format(BEST, options["recall"][0], sum("recall" in line for line in epochs))
    return HEAD.format(
        tags="\n".join("- " + tag for tag in _tags(script, options)), mark=MARK, base=options["base"],
        dimensions=_dimensions(options), length="of length 1" if options["l2normalize"] else "of any length",
        made=_made(script, options), facts="\n".join("- " + fact for fact in _facts(options, data, epochs)),
        command=_command(script, options, defaults), selected=selected,
        table=_table(options, epochs, best_epoch)) + USE.format(
            best=json.dumps(best), best_word=shlex.quote(best), side=side, size=size, start=start, end=start + size,
            resize=json.dumps(options["resize"]), note=SHORT_SIDE if options["resize"] == "short" else "")


def _tags(script, options):
    of_script = ["knowledge-distillation"] if script == "run_distill.py" else []
    return ["image-retrieval", "metric-learning"] + of_script + [json.dumps(options["base"])]


def _dimensions(options, prefix=""):
    return "{} dimensions".format(options[prefix + "embedding_size"]) if options[
        prefix + "embedding_size"] else "pooled features"


def _made(script, options):
    if script != "run_distill.py":
        return "It is trained with the loss {}.".format(options["loss"])
    terms = " + ".join("{:g} {}".format(value, name[:-len("_ratio")]) for name, value in sorted(options.items())
                       if name.endswith("_ratio") and value)
    return "It is distilled from {}, {}, by {}.".format(
        options["teacher_base"], _dimensions(options, "teacher_"), terms)


def _facts(options, data, epochs):
    names = {"train": "training pictures", "val": "held-out training pictures", "test": "test pictures",
             "gallery": "gallery pictures"}  # in this order
    yield "data set: {} ({}); {}".format(options["dataset"], DATASETS[options["dataset"]].summary, ", ".join(
        "{} {}".format(data[split][0], words) for split, words in names.items() if split in data))
    if options.get("unlabelled"):
        yield "the training pictures are those in {}, without labels".format(_shown(options["unlabelled"]))
    begun = options["load"] or options["pretrained"]
    yield "starting weights: {}".format({"imagenet": "ImageNet", "none": "random"}.get(begun, _shown(begun)))
    yield "pictures: {0} x {0} pixels, the middle of {1} x {1} (--resize {2})".format(
        options["image_size"], resized_size(options["image_size"]), options["resize"])
    yield "{} epochs of {} batches of {}".format(len(epochs) - 1, options["iter_per_epoch"], options["batch"])


def _table(options, epochs, best_epoch):
    """Return the measures before training, of best.pth and of last.pth, in Markdown and percent."""
    measured = [("Recall@{}".format(k), "recall", str(k)) for k in options["recall"]]
    measured += [(TITLES.get(name, name), name, None) for name in options["metrics"][1:]]
    splits = [split for split in ("test", "val", "train") if split in epochs[0]["recall"]]
    columns = [("{}, {}".format(title, split), name, split, k) for split in splits for title, name, k in measured]
    lines = [["", "epoch"] + [column[0] for column in columns], ["---"] * (2 + len(columns))]
    for title, number in (("before training", 0), ("`{}`".format(BEST), best_epoch),
                          ("`{}`".format(LAST), len(epochs) - 1)):
        values = [epochs[number][name].get(split) for _, name, split, _ in columns]
        values = [value[k] if k else value for value, (*_, k) in zip(values, columns)]
        lines.append([title, str(number)] + ["" if value is None else "{:.2f}".format(100 * value) for value in values])
    return "\n".join("| {} |".format(" | ".join(line)) for line in lines)


def _command(script, options, defaults):
    """Return the command of a run: what differs from the defaults and is not about the machine."""
    words = ["python3 " + script]
    for name, default in defaults.items():
        value = options[name]
        if value == default or value is None or name in NOT_PART_OF_THE_RUN - {"save_dir"}:
            continue
        if value is True and default is False:
            words.append("--" + name)
            continue
        value = _shown(value) if is_path(name, value) else value
        values = value if isinstance(value, list) else [value]
        words.append("--{} {}".format(name, " ".join(shlex.quote(as_typed(item)) for item in values)))
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) > 96:
            lines[-1] += " \\"
            lines.append(" ")
        lines[-1] += " " + word
    return "\n".join(lines)


def _shown(path):
    """Return a path as seen from the current directory if it lies in it: whoever reads the card has no other."""
    try:
        inside = os.path.relpath(path)
    except (ValueError, OSError):  # on another drive of Windows; there is no current directory any more
        return path
    return path if inside.startswith(os.pardir) else inside
