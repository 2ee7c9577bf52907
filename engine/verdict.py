"""What the figures of a diagnosis say: the lines that ``engine.diagnosis`` prints. Rules of thumb, not laws."""
import math

from engine.evaluation import COLLAPSED_SPREAD, TITLES

LITTLE = 0.03  # a teacher whose first recall is less above the student's has little to teach
ALIKE = 0.8  # networks that share so much of their neighbours, of what is above chance, find nearly the same
DOMINANT = 0.95  # a term with such a share leaves the others hardly any
HARDLY = 0.01  # a term with a smaller share of the gradients hardly counts


def tell_figures(found, run):
    """Print the figures of a diagnosis, as ``engine.diagnosis`` finds them."""
    test, args = found["test"], run.args
    before = "as loaded" if args.load else "before training"
    print("Test set: {} queries, each searches {} pictures. In percent:".format(test["queries"], test["searched"]))
    rows = [["", "teacher", "student, " + before]]
    rows += [[title] + ["{:.2f}".format(100 * value) for value in pair] for title, pair in _measures(test)]
    _tell_table(rows)
    for k, share in test["common_neighbours"].items():
        print("Common neighbours: {:.1%} of the {} (by chance {:.1%})".format(
            share, "nearest" if k == "1" else k + " nearest", int(k) / test["searched"]))
    print("Linear CKA: {}".format("none, for all embeddings of one network are equal" if math.isnan(
        test["linear_cka"]) else "{:.3f} (1: the same but for rotation and scale)".format(test["linear_cka"])))
    print("Loss terms, mean of the first training batches; the gradient is that of the student's weights:")
    rows = [["", "value", "ratio", "value x ratio", "share", "gradient", "share"]]
    rows += [[name] + ["{:.4g}".format(term[key]) for key in ("value", "ratio", "loss")] + [_percent(term["share"])] + [
        "{:.4g}".format(term["gradient"]), _percent(term["gradient_share"])] for name, term in found["terms"].items()]
    _tell_table(rows)
    seconds = found["seconds"]
    print("An epoch: about {} ({} steps of {:.3g} s; measuring {} every {})".format(
        _duration(seconds["epoch"]), args.iter_per_epoch, seconds["step"], _duration(seconds["measuring"]),
        "epoch" if args.eval_every == 1 else "{} epochs".format(args.eval_every)))
    if "teacher_views" in seconds:
        print("Teacher views: about {} before the first epoch, unless they are kept from before".format(
            _duration(seconds["teacher_views"])))
    print("All {} epochs: about {}, on this machine as busy as it is now".format(
        args.epochs, _duration(seconds["training"])))
    if found["memory"] is not None:
        print("Memory: {:.2f} GB ({})".format(found["memory"] / 1e9, "tensors on {}".format(
            run.device) if run.device.type == "cuda" else "this process, without those that load pictures"))


def in_words(found):
    """Return what the figures of a diagnosis mean, a list of lines."""
    lines = [_on_learning(found["test"])]
    if found["test"]["student"]["spread"] < COLLAPSED_SPREAD:
        lines.append("The student's embeddings are nearly one point before training; other weights to start from may "
                     "help (--pretrained, --zero_init_residual)")
    return lines + _on_terms(found["terms"])


def _measures(test):
    """Yield (title of a measure, (teacher's, student's value)) of those that both have."""
    teacher, student = test["teacher"], test["student"]
    for k in teacher["recall"]:
        yield "Recall@" + k, (teacher["recall"][k], student["recall"][k])
    for name in teacher:
        if name in student and name not in ("recall", "spread"):
            yield TITLES.get(name, name), (teacher[name], student[name])


def _on_learning(test):
    title, (teacher, student) = next(_measures(test))
    figures = "{} {:.1%} against {:.1%}".format(title, teacher, student)
    # Twice the standard error of the difference of two shares; the networks see the same queries, so it is less.
    chance = 2 * math.sqrt((teacher * (1 - teacher) + student * (1 - student)) / test["queries"])
    k, shared = list(test["common_neighbours"].items())[-1]
    by_chance = int(k) / test["searched"]
    if test["teacher"]["spread"] < COLLAPSED_SPREAD:
        return "The teacher's embeddings are nearly one point: there is nothing to learn from it"
    if student - teacher > max(LITTLE, chance):
        return "The student finds more than the teacher ({}): the teacher may well draw it down".format(figures)
    if 1 - shared < (1 - ALIKE) * (1 - by_chance):
        return ("The student already finds what the teacher finds: {:.0%} of the {} nearest are the same ({}). "
                "Distilling is not likely to change much".format(shared, k, figures))
    if LITTLE <= teacher - student < chance:
        return ("With {} queries it can't be told whether the teacher finds more ({}; a difference of {:.1%} may be "
                "chance). They share {:.0%} of the {} nearest".format(test["queries"], figures, chance, shared, k))
    if teacher - student < LITTLE:
        return ("The teacher is hardly better than the student is already ({}): there is little to learn from it that "
                "this test set would show. They share {:.0%} of the {} nearest".format(figures, shared, k))
    return ("The teacher finds what the student doesn't yet ({}): there is something to learn. As a rule the teacher's "
            "figure is about the most to hope for; whether this student gets there, only training shows".format(
                figures))


def _on_terms(terms):
    lines = ["The term {} has no gradient on these batches: it trains nothing here".format(name)
             for name, term in terms.items() if term["gradient"] == 0]
    if len(terms) == 1:
        return lines
    name, top = max(terms.items(), key=lambda item: item[1]["gradient"])
    if top["gradient_share"] >= DOMINANT:
        lines.append("The term {} makes {:.0%} of the gradients ({} of the loss): at the start the others hardly "
                     "count; if they should, raise their ratios".format(
                         name, top["gradient_share"], _percent(top["share"])))
    else:
        lines += ["The term {} makes {} of the gradients: at the start it hardly counts; if it should, raise its "
                  "ratio".format(name, _percent(term["gradient_share"]))
                  for name, term in terms.items() if 0 < term["gradient_share"] < HARDLY]
    for name, term in terms.items():
        if term["share"] >= DOMINANT > term["gradient_share"]:
            lines.append("The term {} is {:.0%} of the loss, but {} of the gradients: the sum that is printed follows "
                         "it more than the training does".format(
                             name, term["share"], _percent(term["gradient_share"])))
    return lines


def _percent(share):
    return "-" if math.isnan(share) else "{:.1%}".format(share)


def _duration(seconds):
    for limit, unit, size in ((120, "s", 1), (2 * 3600, "min", 60), (math.inf, "h", 3600)):
        if seconds < limit:
            return "{:.{}f} {}".format(seconds / size, 1 if seconds / size < 10 else 0, unit)


def _tell_table(rows):
    """Print rows of text in columns, the first one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for first, *others in rows:
        print("  " + first.ljust(widths[0]) + "".join(
            "  " + text.rjust(width) for text, width in zip(others, widths[1:])), flush=True)
